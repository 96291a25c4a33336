"""The reduced ResNet-18 of GEM's CIFAR-100 experiments. (Lopez-Paz & Ranzato 2017, section 5; He et al. 2016)"""

from torch import nn
from torch.nn import functional as F

from errors import UserError
from model.flags import SHAPE, Flag, integer
from model.networks.base import Network, as_images

IMAGE_SHAPE = (3, 32, 32)  # channels, height, width
width = Flag("resnet_filters", integer(1), 20, "filters of the ResNet's first stage", role=SHAPE)
flags = (width,)


def make(n_inputs, n_outputs, image_shape, args):
    shape = as_images(n_inputs, image_shape, "resnet18")
    if shape != IMAGE_SHAPE:
        raise UserError(f"--network resnet18 takes images of {IMAGE_SHAPE}, and these are {shape}: use --network cnn")
    return ResNet18(n_outputs, args.resnet_filters)


def conv3x3(n_in, n_out, stride):
    return nn.Conv2d(n_in, n_out, kernel_size=3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al. 2016)."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(n_in, n_out, stride), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = conv3x3(n_out, n_out, 1), nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(Network):
    """ResNet-18 of reduced width for 3x32x32 images (GEM, section 5): stages of nf * (1, 2, 4, 8) filters."""

    most_rows = 256  # predicted at once: activations are 80 kB an image and layer

    def __init__(self, n_classes, nf=20):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(3, nf, 1), nn.BatchNorm2d(nf)
        width, stages = nf, []
        for stage, stride in enumerate((1, 2, 2, 2)):
            n_out = nf * 2**stage
            stages.append(nn.Sequential(BasicBlock(width, n_out, stride), BasicBlock(n_out, n_out, 1)))
            width = n_out
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear = nn.Linear(width, n_classes)

    def forward(self, x, t=None):
        out = F.relu(self.bn1(self.conv1(x.view(-1, 3, 32, 32))))  # (B, nf, 32, 32)
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))  # (B, 8 nf, 4, 4)
        return self.linear(F.avg_pool2d(out, 4).flatten(1))  # (B, C)
