"""Softmax regression and the data of a client, in NumPy."""

import numpy as np
from sklearn.datasets import load_digits

NUM_PIXELS, NUM_DIGITS = 64, 10


def initial_parameters():
    """Weights (pixels, digits) and biases (digits)."""
    return [np.zeros((NUM_PIXELS, NUM_DIGITS)), np.zeros(NUM_DIGITS)]


def load_data(partition_id, num_partitions):
    """Images and labels that this client trains on, and those that it tests on."""
    images, labels = load_digits(return_X_y=True)
    rows = rows_of(labels, partition_id, num_partitions)
    images, labels = images[rows] / 16, labels[rows]
    is_test = np.arange(len(rows)) % 5 == 0
    return (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])


def rows_of(labels, partition_id, num_partitions):
    """A quarter of the rows are dealt in turn, the others in blocks of equal labels."""
    by_label = np.argsort(labels, kind="stable")
    in_turn, in_blocks = by_label[::4], np.delete(by_label, slice(None, None, 4))
    block = np.array_split(in_blocks, num_partitions)[partition_id]
    return np.concatenate([in_turn[partition_id::num_partitions], block])


def probabilities(parameters, images):
    """Those of the ten digits, a row for each image."""
    weights, biases = parameters
    scores = images @ weights + biases
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def train(parameters, images, labels, steps, lr):
    """Steps of gradient descent on the cross-entropy, over all images in each."""
    weights, biases = parameters
    for _ in range(steps):
        error = probabilities([weights, biases], images) - np.eye(NUM_DIGITS)[labels]
        weights = weights - lr * images.T @ error / len(labels)
        biases = biases - lr * error.mean(axis=0)
    return [weights, biases]


def test(parameters, images, labels):
    """The mean cross-entropy, and the share of images that are told right."""
    of_digits = probabilities(parameters, images)
    loss = -np.log(of_digits[np.arange(len(labels)), labels]).mean()
    return float(loss), float((of_digits.argmax(axis=1) == labels).mean())
