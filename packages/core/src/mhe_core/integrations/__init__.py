"""The regularizer in other frameworks' training loops; each file needs the framework it is for."""
