"""The network, the data of a client, training and testing: plain PyTorch."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """One convolution and two linear layers for images of 8 x 8 pixels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, kernel_size=3, padding=1)
        self.hidden = nn.Linear(8 * 4 * 4, 32)
        self.output = nn.Linear(32, 10)

    def forward(self, images):
        """Ten scores for each image."""
        features = F.max_pool2d(F.relu(self.conv(images)), 2)
        return self.output(F.relu(self.hidden(features.flatten(1))))


def load_data(partition_id, num_partitions):
    """Two loaders: the images that this client trains on, and those that it tests on."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    rows = rows_of(labels, partition_id, num_partitions)
    data = TensorDataset(images, torch.tensor(labels))
    is_test = np.arange(len(rows)) % 5 == 0
    train, test = (torch.utils.data.Subset(data, rows[x].tolist()) for x in (~is_test, is_test))
    return DataLoader(train, batch_size=32, shuffle=True), DataLoader(test, batch_size=256)


def rows_of(labels, partition_id, num_partitions):
    """A quarter of the rows are dealt in turn, the others in blocks of equal labels."""
    by_label = np.argsort(labels, kind="stable")
    in_turn, in_blocks = by_label[::4], np.delete(by_label, slice(None, None, 4))
    block = np.array_split(in_blocks, num_partitions)[partition_id]
    return np.concatenate([in_turn[partition_id::num_partitions], block])


def train(net, loader, epochs, lr):
    """Train in place; the mean loss over all minibatches."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    losses = []
    net.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(net, loader):
    """The mean loss of an image, and the share of images that are told right."""
    loss, right = 0.0, 0
    net.eval()
    for images, labels in loader:
        scores = net(images)
        loss += F.cross_entropy(scores, labels, reduction="sum").item()
        right += (scores.argmax(1) == labels).sum().item()
    return loss / len(loader.dataset), right / len(loader.dataset)
