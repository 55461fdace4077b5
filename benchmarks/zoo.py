"""What psp.extract makes of networks of torchvision and timm: python benchmarks/zoo.py [NAME …]

Of every network, weights random, half of the output channels of every layer are pruned at random and taken out; the
outputs are compared in float64 on another batch. Beside it torch-pruning, called plainly, removes half of all channels,
in groups that leave together: it changes what the network computes and is meant to be trained on, so compare where it
runs rather than how much is left. Times on one thread; images of 64×64, of 224×224 where a network takes no others.
"""

import argparse
import signal
import time
import warnings

import timm
import torch
import torch_pruning
import torchvision
from torch import nn

import psp
from psp.runs.provenance import device_name, git_commit

PATIENCE = 30  # seconds
TORCHVISION = """alexnet convnext_tiny densenet121 efficientnet_b0 googlenet mnasnet0_5 mobilenet_v2 mobilenet_v3_small
regnet_y_400mf resnet18 resnet50 shufflenet_v2_x0_5 squeezenet1_1 swin_t vgg11_bn vit_b_16 r3d_18 mc3_18 r2plus1d_18"""
TIMM = """coat_tiny convnextv2_atto cspresnet50 darknet53 deit_tiny_patch16_224 dla34 dpn68 eca_nfnet_l0
edgenext_xx_small efficientnet_lite0 fastvit_t8 fbnetc_100 gernet_s ghostnet_100 gmlp_s16_224 hardcorenas_a
hrnet_w18_small lcnet_050 levit_128s maxvit_pico_rw_256 mixer_s32_224 mixnet_s mnasnet_100 mobilenetv4_conv_small
mobileone_s0 mobilevit_xxs nfnet_l0 poolformer_s12 pvt_v2_b0 regnetx_002 repghostnet_050 repvgg_a0 res2net50_26w_4s
resnest14d resnetv2_50 rexnet_100 selecsls42 semnasnet_050 skresnet18 swin_tiny_patch4_window7_224
tf_efficientnet_b0 tinynet_e twins_pcpvt_small vovnet39a xception41 xcit_nano_12_p16_224"""


@torch.no_grad()
def build(name):
    """(network, image), both random, with no branch that is zero."""
    torch.manual_seed(0)
    if name in TORCHVISION.split():
        clips = name in ("r3d_18", "mc3_18", "r2plus1d_18")
        net = (torchvision.models.video if clips else torchvision.models).__dict__[name](num_classes=10)
        shape = (1, 3, 4, 64, 64) if clips else (1, 3, 224, 224) if name == "vit_b_16" else (1, 3, 64, 64)
    else:
        try:
            net, side = timm.create_model(name, num_classes=10, img_size=64), 64
        except TypeError:  # most take any size and have no such argument
            net, side = timm.create_model(name, num_classes=10), 64
        shape = (1, 3, side, side)
    for parameter in net.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval(), torch.randn(shape)


def size(net):
    return sum(parameter.numel() for parameter in net.parameters())


@torch.no_grad()
def ours(name):
    """(parameters, share that the masks leave, left, MACs left of those of the masks, seconds, largest difference)."""
    net, image = build(name)
    total = size(net)
    psp.parameterize(net, "channel", place="weight").double().eval()
    for alpha in psp.structure_parameters(net).values():
        if alpha.numel() > 1:
            alpha[torch.rand(alpha.shape) < 0.5] = 0.0
    image = image.double()
    masked, began = psp.cost(net, image), time.perf_counter()
    smaller = psp.extract(net, image)
    seconds, left = time.perf_counter() - began, psp.cost(smaller, image)
    batch = torch.randn(2, *image.shape[1:], dtype=torch.float64)
    expected = net(batch)
    difference = float((smaller(batch) - expected).abs().max() / expected.abs().max())
    return total, masked.params / total, left.params / total, left.macs / masked.macs, seconds, difference


def theirs(name):
    """(share of the parameters that torch-pruning leaves, seconds)."""
    net, image = build(name)
    total, began = size(net), time.perf_counter()
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1:]
    importance = torch_pruning.importance.MagnitudeImportance(p=1)
    pruner = torch_pruning.pruner.BasePruner(net, image, importance, pruning_ratio=0.5, ignored_layers=last)
    pruner.step()
    net(image)
    return size(net) / total, time.perf_counter() - began


def attempt(measure, name):
    """The result of a measurement, or why there is none, in a few words: an error, or more than `PATIENCE` seconds."""
    signal.alarm(PATIENCE)
    try:
        return measure(name)
    except GaveUpError:
        return f"takes more than {PATIENCE} s"
    except Exception as error:  # whatever a tool may raise is its result
        return f"fails: {type(error).__name__}"
    finally:
        signal.alarm(0)


class GaveUpError(BaseException):
    """No Exception: what is measured may catch those."""


def give_up(*_):
    raise GaveUpError


def row(name):
    found, other = attempt(ours, name), attempt(theirs, name)
    if isinstance(found, str):
        cells = ["", "", found, "", "", ""]
    else:
        total, masked, left, macs, seconds, difference = found
        cells = [
            f"{total / 1e6:.2f}",
            f"{masked:.2f}",
            f"{left:.2f}",
            f"{macs:.2f}",
            f"{seconds:.1f}",
            f"{difference:.0e}",
        ]
    cells += [other, ""] if isinstance(other, str) else [f"{other[0]:.2f}", f"{other[1]:.1f}"]
    return f"| {name} | {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=TORCHVISION.split() + TIMM.split())
    names = parser.parse_args().names
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, give_up)
    warnings.simplefilter("ignore")
    print("# psp.extract over a zoo\n")
    print(" ".join(__doc__.split("\n\n")[1].split()), "\n")
    print(
        f"timm {timm.__version__}, torchvision {torchvision.__version__}, torch-pruning {torch_pruning.__version__}; "
        f"{device_name(torch.device('cpu'))}; commit {git_commit()}. Shares are of the dense network's parameters, of "
        "multiply-accumulates (MACs) of what the masks leave; difference: relative to the largest output.\n"
    )
    print(
        "| network | million parameters | masks leave | left | MACs | seconds | difference | torch-pruning | seconds |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name in names:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
