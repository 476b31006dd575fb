"""Naming, describing, registering and building; what an error says."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest
from torch import nn

from ics_apps import norms
from ics_apps.norms import NormError, list_norms, make_norm, norm_entry, register_norm, registry

ENTRIES = [
    "adaptive_instance",
    "affine",
    "batch",
    "batch_channel",
    "batch_frozen",
    "batch_instance",
    "batch_layer",
    "batch_noisy",
    "batch_per_domain",
    "batch_renorm",
    "conditional_batch",
    "conditional_group",
    "conditional_instance",
    "conditional_layer",
    "derf",
    "divisive",
    "dyt",
    "evonorm_b0",
    "evonorm_s0",
    "filter_response",
    "ghost_batch",
    "global_response",
    "group",
    "instance",
    "layer",
    "layer_c",
    "layer_chw",
    "local_response",
    "lp_batch",
    "none",
    "pixel",
    "power_norm",
    "rms",
    "scale_norm",
    "spectral_norm",
    "switchable",
    "sync_batch",
    "virtual_batch",
    "weight_norm",
    "weight_standardization",
]


@pytest.fixture
def registrations(monkeypatch):
    """Let a test register norms and load plug-ins without leaving a trace."""
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    monkeypatch.setattr(registry, "_LOADED_PLUGINS", set())
    return monkeypatch


def offer(monkeypatch, **points):
    found = EntryPoints(EntryPoint(name, value, registry.PLUGIN_GROUP) for name, value in points.items())
    monkeypatch.setattr(registry, "entry_points", lambda group: found.select(group=group))


def register_zero():
    @register_norm("zero", family="elementwise", pools=(), scale_invariant=True, reference="ours")
    def zero(channels, *, dim, size: float = 1.0):
        """Return nothing of the input."""
        return nn.Identity()


@register_norm("decorated", family="elementwise", pools=(), scale_invariant=False, reference="ours")
def decorated(channels, *, dim):
    """Be registered by the import alone."""
    return nn.Identity()


DECORATED = registry._ENTRIES.pop("decorated")


def test_all_entries_are_listed_in_order():
    assert list_norms() == ENTRIES


def test_listing_takes_a_pattern_and_a_family():
    assert list_norms("batch_*", family="batch") == ["batch_frozen", "batch_noisy", "batch_per_domain", "batch_renorm"]
    assert list_norms(family="mixed") == ["batch_channel", "batch_instance", "batch_layer", "evonorm_b0", "switchable"]
    assert list_norms("none", family="sample") == []


def test_unknown_family_names_the_nearest():
    with pytest.raises(NormError, match="unknown family 'sampel'; did you mean 'sample'"):
        list_norms(family="sampel")


def test_listing_and_describing_do_not_import_torch():
    code = (
        "import sys, ics_apps.norms as norms\n"
        "assert norms.list_norms() and norms.norm_entry('group').doc\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_package_has_the_names_it_lists_and_no_others():
    assert all(hasattr(norms, name) for name in norms.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'NormalisedConcat'"):
        _ = norms.NormalisedConcat


def test_every_entry_describes_itself(norm):
    entry = norm_entry(norm)
    assert entry.name == norm
    assert entry.summary.endswith(".")
    assert "When to use" in entry.doc
    assert entry.reference
    assert set(entry.dims) <= set(registry.DIMS)
    assert bool(entry.undefined_because) == (len(entry.dims) < len(registry.DIMS))


def test_options_and_defaults_come_from_the_builder():
    assert dict(norm_entry("group").options) == {"num_groups": 8, "eps": 1e-5, "affine": True}
    assert dict(norm_entry("none").options) == {}


def test_a_norm_is_given_by_name_dict_or_callable():
    assert isinstance(make_norm("batch", 8), nn.BatchNorm2d)
    assert make_norm({"name": "group", "num_groups": 2}, 8).num_groups == 2
    assert make_norm(lambda channels, dim: nn.BatchNorm3d(channels), 8, 3).num_features == 8


def test_a_spec_is_left_as_it_was():
    spec = {"name": "group", "num_groups": 2}
    make_norm(spec, 8)
    assert spec == {"name": "group", "num_groups": 2}


@pytest.mark.parametrize(
    ("spec", "channels", "dim", "message"),
    [
        ("gruop", 8, 2, r"unknown norm 'gruop'; did you mean 'group'\? `ics-apps norms list` shows all"),
        ("zzz", 8, 2, r"unknown norm 'zzz'. `ics-apps norms list` shows all"),
        (None, 8, 2, r"a norm is a name, a dict .*, got None; 'none' means no normalization"),
        ({"name": None}, 8, 2, "the name of a norm is a string, got None"),
        ({"num_groups": 2}, 8, 2, r"needs the key 'name', as in \{'name': 'group'\}, got \{'num_groups': 2\}"),
        (
            {"name": "group", "groups": 2},
            8,
            2,
            r"norm 'group' has no option 'groups'; did you mean 'num_groups'\? Its options: affine, eps, num_groups",
        ),
        ({"name": "none", "eps": 1e-5}, 8, 2, "norm 'none' has no option 'eps'. Its options: none"),
        (
            {"name": "group", "num_groups": "2"},
            8,
            2,
            r"option 'num_groups' of norm 'group' must be int, got '2' \(str\)",
        ),
        ({"name": "group", "num_groups": True}, 8, 2, r"must be int, got True \(bool\)"),
        ({"name": "batch", "eps": "1e-5"}, 8, 2, r"option 'eps' of norm 'batch' must be float, got '1e-5' \(str\)"),
        ({"name": "batch", "eps": 0.0}, 8, 2, "eps must be positive, got 0.0"),
        (
            {"name": "batch", "momentum": 1.5},
            8,
            2,
            r"momentum is the weight of the new batch and lies in \[0, 1\], got 1.5",
        ),
        ("group", 12, 2, "12 channels cannot be split into 8 equal groups; use num_groups 6 or 12"),
        ("group", 6, 2, "6 channels cannot be split into 8 equal groups; use num_groups 6"),
        ({"name": "group", "num_groups": 0}, 8, 2, "num_groups must be at least 1, got 0"),
        (
            "layer",
            8,
            2,
            r"norm 'layer' is not defined for dim 2: .*'layer_chw' .*'layer_c'.*defined for dim 0, 'tokens'",
        ),
        ("instance", 8, 0, "norm 'instance' is not defined for dim 0: features have no positions to pool over"),
        ("layer_chw", 8, "tokens", "norm 'layer_chw' is not defined for dim 'tokens': .*'layer_c'"),
        ("batch", 8, 4, "dim must be 0, 1, 2, 3 or 'tokens', got 4"),
        ("batch", 8, True, "dim must be .*, got True"),
        ("batch", 0, 2, "channels must be a positive integer, got 0"),
        ("batch", 8.0, 2, "channels must be a positive integer, got 8.0"),
        ({"name": "batch_noisy", "n_sigma": 0.5}, 8, 2, r"n_sigma is the upper end of U\(1, n_sigma\)"),
        ({"name": "batch_noisy", "r_mu": -0.5}, 8, 2, "r_mu must not be negative, got -0.5"),
        (
            nn.BatchNorm2d,
            8,
            2,
            "called as norm.channels, dim=dim., which BatchNorm2d.* does not accept; wrap it: lambda",
        ),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(spec, channels, dim, message):
    with pytest.raises(NormError, match=message) as caught:
        make_norm(spec, channels, dim)
    assert "\n" not in str(caught.value)


def test_an_integer_is_taken_where_a_float_is_asked_for():
    assert make_norm({"name": "batch", "momentum": 1}, 8).momentum == 1


def test_momentum_may_be_null_for_a_plain_average():
    assert make_norm({"name": "batch", "momentum": None}, 8).momentum is None


def test_a_registered_norm_is_built_with_its_options(registrations):
    register_zero()
    assert isinstance(make_norm({"name": "zero", "size": 2}, 3), nn.Identity)
    assert norm_entry("zero").summary == "Return nothing of the input."


def test_a_second_registration_of_a_name_names_both_builders(registrations):
    register_zero()
    message = r"norm 'zero' is registered twice, by .*:register_zero\S+ and by .*:register_zero\S+; rename one of them"
    with pytest.raises(NormError, match=message):
        register_zero()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Bad Name"}, "lower_snake"),
        ({"pools": ("H",)}, "pools the axis 'H'; known axes: N, C, C/G, S"),
        ({"dims": (7,)}, "declared for dim 7"),
    ],
)
def test_wrong_metadata_are_refused(registrations, change, message):
    metadata = {"name": "odd", "family": "sample", "pools": (), "scale_invariant": False, "reference": "ours"} | change
    with pytest.raises(NormError, match=message):
        register_norm(**metadata)


def test_a_builder_without_defaults_is_refused(registrations):
    with pytest.raises(NormError, match="size must be a keyword-only option with a default"):

        @register_norm("sized", family="sample", pools=(), scale_invariant=False, reference="ours")
        def sized(channels, *, dim, size):
            return nn.Identity()


def test_a_plugin_function_is_loaded_at_the_first_unknown_name(registrations):
    calls = []

    def plugin():
        calls.append("loaded")
        register_zero()

    registrations.setattr(EntryPoint, "load", lambda self: plugin)
    offer(registrations, theirs="their_package.norms:plugin")
    norm_entry("batch")
    assert calls == []
    assert isinstance(make_norm("zero", 3), nn.Identity)
    assert "zero" in list_norms()
    assert calls == ["loaded"]


def test_a_plugin_may_name_a_decorated_builder(registrations):
    def load(point):
        registry._ENTRIES["decorated"] = DECORATED
        return DECORATED.builder

    registrations.setattr(EntryPoint, "load", load)
    offer(registrations, theirs="their_package.norms:decorated")
    assert isinstance(make_norm("decorated", 3), nn.Identity)


def test_a_broken_plugin_is_named(registrations):
    offer(registrations, theirs="package_that_is_not_there.norms")
    with pytest.raises(
        NormError, match=r"plug-in 'theirs = package_that_is_not_there.norms' could not be loaded: No module"
    ):
        make_norm("batsh", 3)


def test_a_broken_plugin_does_not_stop_known_norms(registrations):
    offer(registrations, theirs="package_that_is_not_there.norms")
    assert make_norm("batch", 3).num_features == 3
