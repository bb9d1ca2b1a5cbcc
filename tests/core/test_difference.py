"""What training did to the neurons: exact cases, formulas, and the command mhe diff."""

from __future__ import annotations

import json
import math

import pytest
import torch
from mhe_core import hyperspherical_energy
from mhe_core.cli import main
from mhe_core.diagnostics import compare_weights, difference
from torch import nn


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rotation(d: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q


@pytest.mark.parametrize(("N", "d"), [(30, 12), (12, 30), (16, 16), (5, 9)])
def test_a_rotation_of_the_inputs_changes_nothing_but_directions(N, d):
    weight = torch.randn(N, d, dtype=torch.float64)
    scales = torch.rand(N, 1, dtype=torch.float64) + 0.5
    (layer,) = difference({"w": weight}, {"w": scales * weight @ rotation(d)})
    assert abs(layer.relative_change) < 1e-12
    assert layer.cosine_rms < 1e-14
    assert layer.rotation_defect < 1e-13
    assert layer.smallest_angle_tuned == pytest.approx(layer.smallest_angle_base)


def test_a_permutation_of_the_neurons_keeps_the_energy_and_is_no_rotation():
    weight = torch.randn(30, 12, dtype=torch.float64)
    (layer,) = difference({"w": weight}, {"w": weight[torch.randperm(30)]})
    assert abs(layer.relative_change) < 1e-12
    assert layer.norm_ratio == pytest.approx(1)
    assert layer.cosine_rms > 0.1
    assert layer.rotation_defect > 0.1


@pytest.mark.parametrize("size", [0.01, 0.1])
def test_noise_changes_cosines_by_what_its_size_says(size):
    """u·v' + u'·v moves by σ√(2(1 - c²)): only noise across a neuron turns it."""
    N, d = 400, 200
    u = nn.functional.normalize(torch.randn(N, d, dtype=torch.float64), dim=-1)
    noise = torch.randn(N, d, dtype=torch.float64) * size / math.sqrt(d)
    (layer,) = difference({"w": u}, {"w": u + noise})
    cosines = (u @ u.T)[~torch.eye(N, dtype=torch.bool)]
    expected = size / math.sqrt(d) * (2 * (1 - cosines.square())).mean().sqrt().item()
    assert layer.cosine_rms == pytest.approx(expected, rel=0.03 if size < 0.05 else 0.05)
    # Of the noise, a rotation takes away its skew part: d(d - 1)/2 of the N·d directions.
    defect = size * math.sqrt(1 - (d - 1) / (2 * N))
    assert layer.rotation_defect == pytest.approx(defect, rel=0.05)


def test_figures_are_those_of_a_loop():
    before, after = torch.randn(7, 4).double(), torch.randn(7, 4).double()
    (layer,) = difference({"w": before}, {"w": after}, s=1, half_space=True)
    energies = [hyperspherical_energy(x, s=1, half_space=True).item() for x in (before, after)]
    assert [layer.energy_base, layer.energy_tuned] == pytest.approx(energies)
    assert layer.relative_change == pytest.approx(energies[1] / energies[0] - 1)
    assert layer.norm_ratio == pytest.approx((after.norm() / before.norm()).item())
    u, v = (nn.functional.normalize(x, dim=-1) for x in (before, after))
    changes = [(u[i] @ u[j] - v[i] @ v[j]) ** 2 for i in range(7) for j in range(i)]
    assert layer.cosine_rms == pytest.approx(math.sqrt(sum(changes) / len(changes)))


def test_the_rotation_is_the_best_one():
    before, after = torch.randn(9, 4).double(), torch.randn(9, 4).double()
    (layer,) = difference({"w": before}, {"w": after})
    u, v = (nn.functional.normalize(x, dim=-1) for x in (before, after))
    left, _, right = torch.linalg.svd(v.T @ u)
    best = (u - v @ left @ right).norm() / 3
    assert layer.rotation_defect == pytest.approx(best.item())
    others = [(u - v @ rotation(4)).norm() / 3 for _ in range(50)]
    assert layer.rotation_defect <= min(others)


@pytest.mark.parametrize("half_space", [False, True])
def test_a_sum_is_over_the_unordered_pairs(half_space):
    weight = torch.randn(6, 4).double()
    (layer,) = difference({"w": weight}, {"w": weight}, s=1, reduction="sum", half_space=half_space)
    u = nn.functional.normalize(weight, dim=-1)
    u = torch.cat([u, -u]) if half_space else u
    pairs = torch.pdist(u).reciprocal().sum().item()
    assert layer.energy_base == pytest.approx(pairs)


def test_a_sample_is_seeded_and_says_its_size():
    before, after = torch.randn(50, 8), torch.randn(50, 8)
    one, again = (difference({"w": before}, {"w": after}, max_rows=20)[0] for _ in range(2))
    assert one == again
    assert (one.num_neurons, one.sampled) == (50, 20)
    assert difference({"w": before}, {"w": after}, max_rows=20, seed=1)[0] != one
    assert difference({"w": before}, {"w": after}, max_rows=50)[0].sampled == 50


def test_what_cannot_be_paired_is_listed():
    base = {"a.weight": torch.randn(4, 3), "b.weight": torch.randn(4, 3), "a.bias": torch.ones(4)}
    tuned = {"a.weight": torch.randn(4, 3), "c.weight": torch.randn(2, 2), "new": torch.ones(3)}
    tuned["b.weight"] = torch.randn(5, 3)
    found = compare_weights(base, tuned)
    assert [layer.name for layer in found.layers] == ["a"]
    assert found.unpaired.only_base == ()
    assert found.unpaired.only_tuned == ("c",)
    assert found.unpaired.other_shape == ("b",)
    with pytest.raises(ValueError, match="expected weights that both have"):
        difference({"x": torch.ones(3, 3)}, {"y": torch.ones(3, 3)})
    with pytest.raises(TypeError, match="expected a network or a state dict, got list"):
        difference([], {})


def test_networks_are_read_as_they_use_their_weights():
    model = nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.MultiheadAttention(4, 2))
    other = nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.MultiheadAttention(4, 2))
    layers = {layer.name: layer for layer in difference(model, nn.DataParallel(other))}
    assert list(layers) == ["0", "1.in_proj_weight", "1.out_proj"]
    assert (layers["0"].num_neurons, layers["0"].dim) == (3, 8)
    assert (layers["1.in_proj_weight"].num_neurons, layers["1.in_proj_weight"].dim) == (4, 4)


class TestCommand:
    @pytest.fixture
    def files(self, tmp_path):
        base = {f"blocks.{k}.{kind}.weight": torch.randn(8, 6) for k in range(2) for kind in "qv"}
        base["head.weight"] = torch.randn(3, 6)
        torch.save(base, tmp_path / "base.pt")
        for step in (1000, 900):
            scale = step / 1e4
            noisy = {key: w + scale * torch.randn_like(w) for key, w in base.items()}
            torch.save({"model": noisy}, tmp_path / f"checkpoint-{step}.pt")
        return tmp_path

    def run(self, capsys, *arguments):
        main(["diff", *map(str, arguments)])
        return capsys.readouterr().out

    def test_prints_layers_blocks_kinds_and_the_total(self, files, capsys):
        out = self.run(capsys, files / "base.pt", files / "checkpoint-900.pt", "--sort", "change")
        tables = [table.splitlines() for table in out.split("\n\n")]
        assert [len(table) for table in tables] == [6, 4, 4, 2]
        assert [line.split()[0] for line in tables[1]] == ["block", "blocks.0", "blocks.1", "head"]
        assert [line.split()[0] for line in tables[2]] == ["kind", "q", "v", "head"]
        order = [line.split()[0] for line in tables[0][1:]]
        layers = difference(
            torch.load(files / "base.pt"), torch.load(files / "checkpoint-900.pt")["model"]
        )
        by_change = sorted(layers, key=lambda layer: -abs(layer.relative_change))
        assert order == [layer.name for layer in by_change]

    def test_json_has_everything(self, files, capsys):
        arguments = ["--json", "--s", "1", "--reduction", "sum", "--half-space"]
        out = self.run(capsys, files / "base.pt", files / "checkpoint-900.pt", *arguments)
        (found,) = json.loads(out)
        want = difference(
            torch.load(files / "base.pt"),
            torch.load(files / "checkpoint-900.pt")["model"],
            s=1,
            reduction="sum",
            half_space=True,
        )
        assert [row["energy_tuned"] for row in found["layers"]] == [w.energy_tuned for w in want]
        assert found["total"]["energy_base"] == pytest.approx(sum(w.energy_base for w in want))

    def test_checkpoints_come_in_the_order_of_steps(self, files, capsys):
        checkpoints = sorted(files.glob("checkpoint-*.pt"))
        assert checkpoints[0].name == "checkpoint-1000.pt"
        picture = files / "curve.png"
        out = self.run(capsys, files / "base.pt", *checkpoints, "--plot", picture)
        names = [line.split()[0] for line in out.splitlines()]
        assert [name.rpartition("/")[2] for name in names] == [
            "checkpoint",
            "checkpoint-900.pt",
            "checkpoint-1000.pt",
        ]
        assert picture.stat().st_size > 1000

    def test_a_sample_and_what_is_left_out_are_said(self, files, capsys):
        torch.save({"head.weight": torch.randn(3, 6)}, files / "head.pt")
        picture = files / "changes.png"
        out = self.run(
            capsys, files / "base.pt", files / "head.pt", "--max-rows", 2, "--plot", picture
        )
        assert "2 of 3" in out
        assert "sample" in out
        assert "only in BASE: blocks.0.q, blocks.0.v, blocks.1.q, blocks.1.v" in out
        assert picture.stat().st_size > 1000
