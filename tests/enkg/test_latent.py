"""Priors over latent variables: guided as any other, decoded for the simulator and the results."""

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

import enkg
from enkg.counted import counted
from enkg.latent import Decoding, Encoding, decode_vjp
from enkg.prior import Drawable, Flowing, White
from tests.enkg.problems import normal, small_problem, values

BASIS = torch.linalg.qr(normal(9, 4, seed=2)).Q
INNER = enkg.Gaussian(torch.zeros(4).double(), torch.ones(4).double(), enkg.Identity((4,)))


def decode(z: Tensor) -> Tensor:
    return (2 * z @ BASIS.to(z).T).reshape(len(z), 3, 3)


def encode(x: Tensor) -> Tensor:
    return 0.5 * x.flatten(1) @ BASIS.to(x)


def bent(z: Tensor) -> Tensor:
    return decode(z).sinh()


PRIOR = enkg.latent(INNER, decode, (3, 3), encode)


def experiment(**changes) -> enkg.Experiment:
    fields = {
        "prior": PRIOR,
        "simulator": lambda x: x[:, 0],
        "observation": enkg.Observation(torch.ones(3), std=0.5),
        "guidance": enkg.EnKG(members=64),
        "double": True,
    }
    return enkg.Experiment(**{**fields, **changes})


def test_that_a_latent_prior_has_the_abilities_of_the_prior_inside():
    assert all(isinstance(PRIOR, kind) for kind in (Drawable, Flowing, White, Decoding, Encoding))
    bare = enkg.latent(small_problem().one_component, lambda z: z, (6,))
    assert isinstance(bare, Drawable)
    assert not isinstance(bare, Flowing | White | Encoding)
    z = normal(5, 4)
    assert torch.equal(PRIOR.denoise(z, 0.3), INNER.denoise(z, 0.3))
    again = pickle.loads(pickle.dumps(PRIOR))
    assert torch.equal(again.decode(z), PRIOR.decode(z))


def test_that_the_result_is_decoded_and_is_the_posterior_of_the_decoded_prior():
    # decode is linear, so x = 2 B z is Gaussian with covariance 4 B B^T.
    exact = enkg.Gaussian.from_covariance(torch.zeros(3, 3).double(), 4 * BASIS @ BASIS.T)
    wide = enkg.EnKG(members=2000)
    latent = enkg.run(experiment(guidance=wide))
    plain = enkg.run(experiment(guidance=wide, prior=exact))
    one, other = (values(tree, "posterior", "x") for tree in (latent, plain))
    assert one.shape == other.shape == (2000, 3, 3)
    np.testing.assert_allclose(one.mean(0), other.mean(0), atol=0.2)  # 4 sqrt(2 x 4 / 2000)
    np.testing.assert_allclose(one.std(0), other.std(0), atol=0.2)


def test_that_the_truth_is_decoded_as_well():
    truth = decode(normal(1, 4, seed=4))[0]
    tree = enkg.run(experiment(truth=truth))
    assert values(tree, "truth", "x").shape == (3, 3)
    with pytest.raises(enkg.InputError, match=r"truth has shape \(4,\), a member \(3, 3\)"):
        experiment(truth=torch.zeros(4))


def test_that_the_decoder_is_pulled_back_whatever_the_chunk():
    prior = enkg.latent(INNER, bent, (3, 3))
    z, v = normal(5, 4), normal(5, 3, 3, seed=1)
    exact = torch.stack(
        [
            v[j].flatten() @ torch.autograd.functional.jacobian(lambda t: bent(t[None])[0], z[j])
            .reshape(9, 4)
            for j in range(5)
        ]
    )  # fmt: skip
    torch.testing.assert_close(decode_vjp(prior, z, v), exact)
    inside = counted(prior, 2, torch.device("cpu"), 1)
    torch.testing.assert_close(inside.decode_vjp(z, v), exact)  # pyright: ignore


def test_that_a_decoder_that_answers_in_another_shape_is_refused():
    wrong = enkg.latent(INNER, lambda z: z, (3, 3))
    with pytest.raises(enkg.InputError, match=r"decoder was given .* expected \(2, 3, 3\)"):
        wrong.decode(torch.zeros(2, 4))
    with pytest.raises(enkg.InputError, match="decode is a int; expected a function"):
        enkg.latent(INNER, 3, (3, 3))  # pyright: ignore[reportArgumentType]
    rigid = enkg.latent(INNER, lambda z: decode(z.detach()), (3, 3))
    with pytest.raises(enkg.MissingCapability, match="decoder that torch can differentiate"):
        decode_vjp(rigid, torch.zeros(2, 4), torch.zeros(2, 3, 3))
