"""The model as arrays, and the data: plain scikit-learn."""

import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

CLASSES, NUM_FEATURES = np.arange(3), 4


def load_data():
    """Irises to train on and to test the global model on: X_train, X_test, y_train, y_test."""
    features, labels = load_iris(return_X_y=True)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    return train_test_split(features, labels, test_size=0.2, stratify=labels, random_state=0)


def load_partition(partition_id, num_partitions):
    """The irises of one client: half are dealt in turn, the others in blocks of equal labels."""
    features, _, labels, _ = load_data()
    by_label = np.argsort(labels, kind="stable")
    in_turn = by_label[::2][partition_id::num_partitions]
    block = np.array_split(by_label[1::2], num_partitions)[partition_id]
    rows = np.concatenate([in_turn, block])
    return features[rows], labels[rows]


def create_model(max_iter=1):
    """Logistic regression that begins where its arrays are; zeros at first."""
    model = LogisticRegression(max_iter=max_iter, warm_start=True)
    set_arrays(model, [np.zeros((len(CLASSES), NUM_FEATURES)), np.zeros(len(CLASSES))])
    return model


def get_arrays(model):
    """Coefficients (classes, features) and intercepts (classes)."""
    return [model.coef_, model.intercept_]


def set_arrays(model, arrays):
    """Put the arrays in, as if the model had been fitted to them."""
    model.classes_ = CLASSES
    model.coef_, model.intercept_ = arrays
