"""The learned triggers' network and filters, against independent computations."""

from __future__ import annotations

import torch
from scipy import fft
from torch import nn
from torch.nn import functional as F

from backdoor_bench.attack.generator import UNet, blur, blur_taps, dct_matrix, low_pass, low_pass_matrix


def test_dct_matrix_is_orthonormal() -> None:
    torch.testing.assert_close(dct_matrix(32) @ dct_matrix(32).T, torch.eye(32, dtype=torch.float64))


def test_low_pass_is_that_of_scipy() -> None:
    noise = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    spectrum = fft.dctn(noise.double().numpy(), axes=(2, 3), norm="ortho")
    spectrum[:, :, 20:] = 0  # int(0.65 * 32)
    spectrum[:, :, :, 41:] = 0  # int(0.65 * 64)
    expected = torch.from_numpy(fft.idctn(spectrum, axes=(2, 3), norm="ortho")).float()
    filtered = low_pass(noise, low_pass_matrix(32, 0.65), low_pass_matrix(64, 0.65))
    torch.testing.assert_close(filtered, expected, rtol=0, atol=1e-5)


def test_generator_has_the_published_size() -> None:
    assert sum(parameter.numel() for parameter in UNet().parameters()) == 9_370_243


def test_generator_works_image_by_image() -> None:
    unet, images = UNet(2), torch.rand(3, 3, 32, 48) * 2 - 1
    noise = unet(images)
    assert noise.shape == images.shape
    assert noise.abs().max() <= 1
    torch.testing.assert_close(unet.eval()(images[1:2]), noise[1:2])


def test_generator_is_the_in_place_one() -> None:
    """The card's table, line by line, with activations in place."""
    unet, x = UNet(2), torch.rand(2, 3, 32, 32) * 2 - 1
    convs = iter([layer for layer in unet.modules() if isinstance(layer, nn.Conv2d)])
    act, norm, up = nn.LeakyReLU(0.2, inplace=True), F.instance_norm, nn.Upsample(scale_factor=2, mode="bilinear")

    def conv(y: torch.Tensor) -> torch.Tensor:
        return next(convs)(y)

    with torch.no_grad():
        f0 = norm(conv(act(conv(x))))
        f1 = norm(conv(act(norm(conv(act(f0))))))
        f2 = norm(conv(act(norm(conv(act(f1))))))
        f3 = norm(conv(act(norm(conv(act(f2))))))
        u3 = norm(conv(act(norm(conv(act(up(f3))))))) + f2
        u2 = norm(conv(act(norm(conv(act(up(u3))))))) + f1
        u1 = norm(conv(act(norm(conv(act(up(u2))))))) + f0
        u0 = conv(act(norm(conv(act(up(u1)))))).tanh()
        torch.testing.assert_close(unet(x), u0)


def test_blur_taps() -> None:
    outer, middle = blur_taps(torch.tensor([1.0, 0.1]))
    torch.testing.assert_close(outer, torch.tensor([0.274069, 0.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(middle, torch.tensor([0.451863, 1.0]), rtol=0, atol=1e-5)


def test_blur_takes_a_sigma_per_image() -> None:
    point = torch.zeros(2, 1, 5, 5)
    point[:, :, 2, 2] = 1
    blurred = blur(point, torch.tensor([0.1, 1.0]))
    torch.testing.assert_close(blurred[0], point[0])
    taps = torch.tensor([0.274069, 0.451863, 0.274069])
    torch.testing.assert_close(blurred[1, 0, 1:4, 1:4], taps[:, None] * taps, rtol=0, atol=1e-5)
    flat = torch.full((1, 3, 4, 4), 0.3)
    torch.testing.assert_close(blur(flat, torch.tensor([0.7])), flat)
    # Reflected: the neighbour of the first column is the second one, twice.
    edge = blur(torch.eye(3)[:1].expand(1, 1, 3, 3), torch.tensor([1.0]))
    torch.testing.assert_close(edge[0, 0, 1], torch.tensor([0.451863, 0.274069, 0.0]), rtol=0, atol=1e-5)
