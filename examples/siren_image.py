"""A sine network learns a picture from the gradient of the picture alone, and draws what it learned.

The loss holds a derivative of the network, so each training step differentiates a gradient: the double backward of sin,
once a layer. The network is that of Sitzmann et al., 2020, arXiv:2006.09661.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from training import Processes, options

import torchad_ext as ad
from torchad_ext.demo import SineNetwork, load_picture
from torchad_ext.plot import Field, Fit, plot_fit


class GradientErrors(nn.Module):
    """|∇u − gradient|² at each pixel, of a network u."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, gradient: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.network(x).sum(), x, create_graph=True)
        return (slope - gradient).square().sum(-1)


def main() -> None:
    chosen = options(str(__doc__), steps=300)
    target = load_picture(side=64)
    axis = torch.linspace(-1, 1, 64)
    pixels = torch.cartesian_prod(axis, axis)
    torch.manual_seed(0)
    network = SineNetwork(torch.sin if chosen.native else ad.sin, width=128, depth=2)
    with Processes.join(chosen.device) as processes:
        losses = processes.train(GradientErrors(network), (pixels, target.gradient.flatten(0, 1)), chosen.steps)
        if processes.rank == 0:
            x = pixels.to(processes.device).requires_grad_()
            value = network(x)
            (slope,) = torch.autograd.grad(value.sum(), x)
            field = Field(value.detach().view(64, 64).cpu(), slope.view(64, 64, 2).cpu())
            name = "torch.sin" if chosen.native else "torchad_ext.sin"
            figure = plot_fit(target, {name: Fit(field, losses, [])}, Figure(figsize=(9, 5), layout="constrained"))
            figure.savefig(chosen.output / "siren_image.png", dpi=120)
            print(f"saved {chosen.output / 'siren_image.png'}")


if __name__ == "__main__":
    main()
