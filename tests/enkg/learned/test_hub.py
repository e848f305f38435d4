"""Networks that diffusers wrote, read back and held against diffusers' own schedulers."""

import json
import pickle
import sys

import pytest
import torch

import enkg
from enkg.learned.adapters import EDM, FlowMatching, VariancePreserving
from enkg.learned.hub import from_diffusers
from enkg.learned.repository import Repository
from enkg.prior import vjp
from tests.enkg.learned.tiny import SCHEDULERS, diffusers, members, save, unet
from tests.enkg.problems import normal

EDMS = [
    diffusers.EDMEulerScheduler(sigma_data=0.7),
    diffusers.EDMDPMSolverMultistepScheduler(sigma_data=0.3, prediction_type="v_prediction"),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=list(SCHEDULERS))
@pytest.mark.parametrize("step", [0, 1, 40, 500, 998])
def test_that_the_prior_agrees_with_the_schedulers_own_sample(tmp_path, scheduler, step):
    network = unet()
    prior = from_diffusers(save(tmp_path, network, scheduler))
    assert isinstance(prior, VariancePreserving)
    abar = scheduler.alphas_cumprod[step].double()
    sigma = float(((1 - abar) / abar).sqrt())
    noisy = members()  # x_t, of variance about one
    with torch.no_grad():
        answer = network(noisy, torch.full((3,), step)).sample
    scheduler.set_timesteps(1000)
    exact = scheduler.step(answer, step, noisy).pred_original_sample
    found = prior.denoise(noisy * (1 + sigma**2) ** 0.5, sigma)
    torch.testing.assert_close(found, exact, rtol=2e-4, atol=2e-4 * (1 + sigma))


@pytest.mark.parametrize("scheduler", EDMS, ids=["noise", "velocity"])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 30.0])
def test_that_an_edm_prior_agrees_with_the_schedulers_preconditioning(tmp_path, scheduler, sigma):
    network = unet()
    prior = from_diffusers(save(tmp_path, network, scheduler))
    assert isinstance(prior, EDM)
    x = (1 + sigma) * members()
    with torch.no_grad():
        time = scheduler.precondition_noise(sigma)
        answer = network(scheduler.precondition_inputs(x, sigma), time).sample
    exact = scheduler.precondition_outputs(x, answer, sigma)
    torch.testing.assert_close(prior.denoise(x, sigma), exact, rtol=1e-4, atol=1e-4)


def test_that_a_flow_prior_lands_where_one_euler_step_of_the_scheduler_does(tmp_path):
    network = unet()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    prior = from_diffusers(save(tmp_path, network, scheduler))
    assert isinstance(prior, FlowMatching)
    scheduler.set_timesteps(sigmas=[0.9, 0.4])
    last, share = scheduler.timesteps[-1], float(scheduler.sigmas[-2])
    assert share > 0.1
    assert scheduler.sigmas[-1] == 0  # so the last step leads to x_0
    scheduler.set_begin_index(1)
    noisy = members()
    with torch.no_grad():
        answer = network(noisy, last.expand(3)).sample
    exact = scheduler.step(answer, last, noisy).prev_sample
    found = prior.denoise(noisy / (1 - share), share / (1 - share))
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)


def test_that_members_may_do_without_the_channel_axis(tmp_path):
    source = save(tmp_path, unet(), SCHEDULERS["ddpm"])
    image, plain = from_diffusers(source), from_diffusers(source, shape=(8, 8))
    assert (image.shape, plain.shape) == ((1, 8, 8), (8, 8))
    x = members()
    assert torch.equal(plain.denoise(x[:, 0], 0.7), image.denoise(x, 0.7)[:, 0])


def test_that_a_loaded_prior_can_be_differentiated_and_pickled(tmp_path):
    prior = from_diffusers(save(tmp_path, unet(), SCHEDULERS["ddpm"]))
    x, v = members().double(), normal(3, 1, 8, 8, seed=5)
    product = vjp(prior, x, 0.7, v)
    # against a difference quotient in direction u, in the network's float32
    u = normal(3, 1, 8, 8, seed=6)
    ahead, behind = (prior.denoise(x + h * u, 0.7) for h in (0.01, -0.01))
    slope = (v * (ahead - behind) / 0.02).sum()
    torch.testing.assert_close((product * u).sum(), slope, rtol=2e-3, atol=2e-3)
    again = pickle.loads(pickle.dumps(prior))
    assert torch.equal(again.denoise(x, 0.7), prior.denoise(x, 0.7))
    assert not prior.denoise(x, 0.7).requires_grad


def test_that_the_two_may_lie_in_one_folder_or_anywhere_below(tmp_path):
    network, scheduler = unet(), SCHEDULERS["ddpm"]
    network.save_pretrained(tmp_path / "one")
    scheduler.save_pretrained(tmp_path / "one")
    network.save_pretrained(tmp_path / "two" / "mine")
    scheduler.save_pretrained(tmp_path / "two" / "scheduler")
    x = members()
    one = from_diffusers(tmp_path / "one").denoise(x, 0.7)
    two = from_diffusers(tmp_path / "two", "mine").denoise(x, 0.7)
    given = from_diffusers(tmp_path / "two" / "mine", scheduler=scheduler).denoise(x, 0.7)
    assert torch.equal(one, two)
    assert torch.equal(one, given)


def test_that_a_learned_variance_is_left_out(tmp_path):
    network = unet(2, out_channels=4)
    prior = from_diffusers(save(tmp_path, network, SCHEDULERS["ddpm"]))
    assert prior.shape == (2, 8, 8)
    x, sigma = members(2), 0.7
    with torch.no_grad():
        time = torch.full((3,), prior.time(sigma))  # pyright: ignore
        noise = network(x / (1 + sigma**2) ** 0.5, time).sample[:, :2]
    torch.testing.assert_close(prior.denoise(x, sigma), x - sigma * noise)


def test_that_predicts_and_clip_override_the_saved_scheduler(tmp_path):
    source = save(tmp_path, unet(), SCHEDULERS["ddpm"])
    x = members()
    velocity = from_diffusers(source, predicts="velocity")
    noise = from_diffusers(source)
    assert not torch.allclose(velocity.denoise(x, 0.7), noise.denoise(x, 0.7))
    clipped = from_diffusers(source, clip=0.3)
    assert torch.equal(clipped.denoise(x, 0.7), noise.denoise(x, 0.7).clamp(-0.3, 0.3))


def test_that_a_network_with_classes_is_asked_for_one(tmp_path):
    network = unet(num_class_embeds=4)
    source = save(tmp_path, network, SCHEDULERS["ddpm"])
    with pytest.raises(enkg.InputError, match="label is None; this network was trained with"):
        from_diffusers(source)
    x = members()
    one, two = (from_diffusers(source, label=label).denoise(x, 0.7) for label in (1, 2))
    assert not torch.allclose(one, two)
    bare = save(tmp_path / "bare", unet(), SCHEDULERS["ddpm"])
    with pytest.raises(enkg.InputError, match="trained without classes"):
        from_diffusers(bare, label=1)


def test_that_a_learned_table_of_times_is_asked_at_whole_steps(tmp_path):
    network = unet(time_embedding_type="learned", num_train_timesteps=1000)
    prior = from_diffusers(save(tmp_path, network, SCHEDULERS["ddpm"]))
    assert prior.integer_times  # pyright: ignore
    assert bool(prior.denoise(members(), 0.7).isfinite().all())


def test_that_a_periodic_network_commutes_with_shifts(tmp_path):
    source = save(tmp_path, unet(), SCHEDULERS["ddpm"])
    x = members()
    shifted = x.roll((2, 4), (2, 3))  # multiples of the coarsest grid
    for periodic in (True, False):
        prior = from_diffusers(source, periodic=periodic)
        one, other = prior.denoise(x, 0.7).roll((2, 4), (2, 3)), prior.denoise(shifted, 0.7)
        assert torch.allclose(one, other, atol=1e-5) == periodic
    source = save(tmp_path / "odd", unet(downsample_padding=0), SCHEDULERS["ddpm"])
    with pytest.raises(enkg.InputError, match="downsample_padding=0"):
        from_diffusers(source, periodic=True)


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        ({}, (3, 8, 8), r"shape is \(3, 8, 8\); the network was made for 1 channel of 8 x 8"),
        ({}, (1, 16, 16), "made for 1 channel of 8 x 8"),
        ({"channels": 2}, (8, 8), "made for 2 channels of 8 x 8"),
        ({}, (64,), "made for 1 channel of 8 x 8"),
        ({"size": None}, None, r"give shape=\(C, H, W\)"),
        ({"size": None}, (1, 9, 8), "needs multiples of 2"),
        ({"out_channels": 3}, None, "takes 1 channels and returns 3"),
    ],
)
def test_that_a_network_that_does_not_fit_the_members_is_refused(tmp_path, network, shape, message):
    source = save(tmp_path, unet(**network), SCHEDULERS["ddpm"])
    with pytest.raises(enkg.InputError, match=message):
        from_diffusers(source, shape=shape)


def test_that_a_network_without_its_own_size_takes_any_that_fits(tmp_path):
    source = save(tmp_path, unet(size=None), SCHEDULERS["ddpm"])
    prior = from_diffusers(source, shape=(12, 6))
    assert prior.denoise(torch.zeros(2, 12, 6), 1.0).shape == (2, 12, 6)


@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [
        (None, {}, r"has no scheduler/scheduler_config\.json .* Give scheduler="),
        (diffusers.LCMScheduler(), {}, "a LCMScheduler does not say"),
        (EDMS[0], {"predicts": "noise"}, "predicts and clip are for variance-preserving"),
        (SCHEDULERS["ddpm"], {"predicts": "epsilon"}, "predicts is 'epsilon'; expected one of"),
        (
            diffusers.EulerDiscreteScheduler(timestep_type="continuous"),
            {},
            "a EulerDiscreteScheduler does not say",
        ),
        (
            diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True
            ),
            {},
            "the network predicts 'flow_prediction'",
        ),
    ],
)
def test_that_a_scheduler_of_another_kind_is_refused(tmp_path, scheduler, options, message):
    source = save(tmp_path, unet(), scheduler)
    with pytest.raises(enkg.InputError, match=message):
        from_diffusers(source, **options)


def test_that_broken_configurations_are_refused(tmp_path):
    source = save(tmp_path, unet(), SCHEDULERS["ddpm"])
    path = tmp_path / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(enkg.InputError, match="the network is a UNet2DConditionModel; expected"):
        from_diffusers(source)
    path.write_text("{")
    with pytest.raises(enkg.InputError, match=r"config\.json is no JSON file"):
        from_diffusers(source)
    path.unlink()
    with pytest.raises(enkg.InputError, match=r"has no config\.json or unet/config\.json"):
        from_diffusers(source)


def test_that_a_source_that_is_nowhere_is_refused(tmp_path, monkeypatch):
    for source in (tmp_path / "none", "./none", "models/of/mine", "none"):
        with pytest.raises(enkg.InputError, match=r"there is no folder .* no name on the hub"):
            from_diffusers(source)

    def offline(*args, **kwargs):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(diffusers.UNet2DModel, "load_config", offline)
    with pytest.raises(
        enkg.InputError, match=r"nobody/nothing is no folder here.*couldn't connect"
    ):
        from_diffusers("nobody/nothing")


def test_that_a_name_on_the_hub_goes_through_diffusers(tmp_path, monkeypatch):
    source = save(tmp_path, unet(), SCHEDULERS["ddpm"])
    asked = []

    def redirected(method):
        def call(name, *args, **kwargs):
            asked.append((name, kwargs.get("subfolder"), kwargs.get("use_safetensors")))
            return method(source, *args, **kwargs)

        return call

    for kind in (diffusers.UNet2DModel, diffusers.DDPMScheduler):
        monkeypatch.setattr(kind, "load_config", redirected(kind.load_config))
    loaded = redirected(diffusers.UNet2DModel.from_pretrained)
    monkeypatch.setattr(diffusers.UNet2DModel, "from_pretrained", loaded)
    prior = from_diffusers("somebody/something", "unet")
    assert {name for name, *_ in asked if name != source} == {"somebody/something"}
    assert ("somebody/something", "unet", True) in asked
    monkeypatch.undo()
    x = members()
    assert torch.equal(prior.denoise(x, 0.7), from_diffusers(source).denoise(x, 0.7))
    assert Repository("somebody/something").folder is None


def test_that_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(enkg.InputError, match=r'pip install "enkg\[train\]"'):
        from_diffusers(tmp_path)
