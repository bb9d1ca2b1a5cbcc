import pytest
import torch
from mhe_classification.classifier import load
from mhe_classification.config import ClassificationConfig
from mhe_classification.features import load_feature_extractor
from mhe_classification.train import train
from mhe_core.training.augment import normalize
from mhe_core.training.run import RunError


@pytest.mark.parametrize("model", ["vgg9", "resnet20"])
def test_a_trained_classifier_gives_features_and_logits(tmp_path, model):
    train(
        ClassificationConfig(
            output=tmp_path / "run", model=model, width=0.125, steps=2, batch_size=16, device="cpu"
        )
    )
    extractor = load_feature_extractor(tmp_path / "run")
    pixels = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    features, logits = extractor(pixels)
    classifier = load(tmp_path / "run").network
    torch.testing.assert_close(logits, classifier(normalize(pixels)))
    head = classifier.get_classifier()
    from_features = features @ head.weight.flatten(1).T
    if head.bias is not None:
        from_features = from_features + head.bias
    torch.testing.assert_close(from_features, logits)
    assert extractor(torch.zeros(2, 3, 48, 48, dtype=torch.uint8))[0].shape == (
        2,
        features.shape[1],
    )


def test_a_folder_that_is_not_a_run(tmp_path):
    with pytest.raises(RunError, match="expected a run directory"):
        load_feature_extractor(tmp_path)
