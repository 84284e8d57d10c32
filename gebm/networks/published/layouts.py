"""Published layouts of generators and discriminators, by their names.

A layout is one that torch_mimicry (Lee and Town, 2020) or StudioGAN (Kang, Shin and Park, 2022) publish weights in:
``mimicry``, the residual networks of the former's SNGAN and DCGAN; ``studiogan_resnet``, those of the latter's SNGAN;
and ``studiogan_deep_conv``, the convolutions of its DCGAN. Widths are theirs: the channels that its ``ngf`` and
``ndf``, or ``g_conv_dim`` and ``d_conv_dim``, are. Any of their sizes may be smaller or larger than was published.
"""

from __future__ import annotations

from collections.abc import Mapping

from gebm.networks.published.layout import Layout
from gebm.networks.published.mimicry import MIMICRY
from gebm.networks.published.studiogan import STUDIOGAN_DEEP_CONV, STUDIOGAN_RESNET

__all__ = ["LAYOUTS"]

LAYOUTS: Mapping[str, Layout] = {
    "mimicry": MIMICRY,
    "studiogan_resnet": STUDIOGAN_RESNET,
    "studiogan_deep_conv": STUDIOGAN_DEEP_CONV,
}
"""The layouts by their names."""
