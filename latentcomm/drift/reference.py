"""A receiver's manifold at one site: how far a state is from it, and how rare that is among held-out real states."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentcomm._core.arrays import takes_arrays
from latentcomm._core.files import UnreadableError, laid_out, read_tensors, write_tensors
from latentcomm._core.linalg import require_finite
from latentcomm.drift.alarms import alarm_shares
from latentcomm.drift.detectors import DETECTORS, PANEL, Manifold, measure_all
from latentcomm.drift.families import FAMILIES, known_off
from latentcomm.drift.gaussian import rms_normalised
from latentcomm.drift.rarity import combined_surprise, held_out_surprise, share_at_least, surprise, two_sided
from latentcomm.drift.sets import SetDrift, set_drift
from latentcomm.drift.verdicts import COMBINED, Auroc, Drift, Scores, separation, those
from latentcomm.models.sites import Site
from latentcomm.redundancy.residuals import Groups

__all__ = ["COMBINED", "Auroc", "Drift", "DriftReference"]

FILE_KIND = "latentcomm.DriftReference/2"
"""Written into a saved reference and required on loading, so that no other safetensors file passes for one."""

States = Float[Tensor, "*batch d_model"]


@dataclass(frozen=True, eq=False, repr=False)
class DriftReference:
    """A receiver's own states at one site, and how far others are from them; made by `fit_drift_reference`.

    The measures take states with any leading axes, on the CPU, and return one number each in the states' dtype;
    percentiles and p-values come in float64. Those marked RMS see x / sqrt(mean(x^2)), the others the raw state.
    A state that the reference was fitted on is its own neighbour: measure others.

    Attributes:
        site, model, kind: what the states are of (model is a name or fingerprint; kind for instance "last"), or None.
        seed: of the split and the clusters.
        sinks_by_position, sinks_by_norm: rows left out of it all for their position, and further ones for their norm.
        n_fitted: rows that the Gaussians and the subspace were fitted on.
        manifold: what the detectors know.
        held_out: real states of documents that nothing was fitted on, which calibrate everything.
        held_out_rows: the number of each among the rows given.
        held_out_groups: the document of each.
        held_out_scores: each detector's number for each, in the order of DETECTORS.
    """

    site: Site | None
    model: str | None
    kind: str | None
    seed: int
    sinks_by_position: int
    sinks_by_norm: int
    n_fitted: int
    manifold: Manifold
    held_out: Float[Tensor, "real d_model"]
    held_out_rows: Int[Tensor, " real"]
    held_out_groups: Int[Tensor, " real"]
    held_out_scores: Float[Tensor, "real detector"]

    def __post_init__(self) -> None:
        for name in HELD_OUT:
            object.__setattr__(self, name, laid_out(getattr(self, name)))

    def __repr__(self) -> str:
        site = "an unnamed site" if self.site is None else self.site.hook_name
        sinks = f", {self.left_out} sinks left out" if self.left_out else ""
        sizes = f"{self.n_fitted} fitted, {len(self.held_out)} held out{sinks}, width {self.d_model}"
        return f"DriftReference({site}, {sizes})"

    @property
    def left_out(self) -> int:
        """How many of the rows given were left out as sinks."""
        return self.sinks_by_position + self.sinks_by_norm

    @property
    def d_model(self) -> int:
        """Width of the states."""
        return self.held_out.shape[1]

    def require(self, *, site: Site | None = None, model: str | None = None, kind: str | None = None) -> None:
        """Refuse states of another site, model or kind than those fitted; None is not checked.

        Raises:
            ValueError: one of them is another, or was not given when the reference was fitted.
        """
        for what, given, own in (("site", site, self.site), ("model", model, self.model), ("kind", kind, self.kind)):
            if given is not None and given != own:
                fitted = "no " + what if own is None else repr(own)
                raise ValueError(
                    f"the reference was fitted for {fitted} but the states are of {given!r};"
                    f" fit one with {what}={given!r}"
                )

    @takes_arrays
    def mahalanobis(self, x: States) -> Float[Tensor, "*batch"]:
        """RMS: sqrt((x - m)' C^-1 (x - m)), C the Ledoit-Wolf covariance (Ledoit & Wolf 2004)."""
        return self._one(x, "mahalanobis")

    @takes_arrays
    def cluster_mahalanobis(self, x: States) -> Float[Tensor, "*batch"]:
        """RMS: min_k sqrt((x - m_k)' W^-1 (x - m_k)), m_k the k-means centres, W the covariance within clusters.

        Source: Lee et al. 2018, arXiv:1807.03888, there with classes.
        """
        return self._one(x, "cluster_mahalanobis")

    @takes_arrays
    def relative_mahalanobis(self, x: States) -> Float[Tensor, "*batch"]:
        """RMS: squared cluster distance less the squared distance to the background Gaussian.

        What is unusual in all directions equally cancels; what is unusual for its cluster remains. The background is
        that of all fitted states, unless other rows were given for it. Source: Ren et al. 2021, arXiv:2106.09022.
        """
        return self._one(x, "relative_mahalanobis")

    @takes_arrays
    def off_subspace(self, x: States) -> Float[Tensor, "*batch"]:
        """Raw: |r|^2, the energy of x - m outside the principal subspace that holds 90 % of the fitted variance."""
        return self._one(x, "off_subspace")

    @takes_arrays
    def knn_distance(self, x: States) -> Float[Tensor, "*batch"]:
        """RMS: the distance to the 10th nearest fitted state. Source: Sun et al. 2022, arXiv:2204.06507."""
        return self._one(x, "knn_distance")

    @takes_arrays
    def local_outlier_factor(self, x: States) -> Float[Tensor, "*batch"]:
        """RMS: the density of the 20 nearest fitted states over one's own. Source: Breunig et al. 2000."""
        return self._one(x, "local_outlier_factor")

    @takes_arrays
    def local_pca_residual(self, x: States) -> Float[Tensor, "*batch"]:
        """RMS: the distance to the plane through the 30 nearest fitted states, of 10 dimensions (or half the width)."""
        return self._one(x, "local_pca_residual")

    @takes_arrays
    def norm_ratio(self, x: States) -> Float[Tensor, "*batch"]:
        """Raw: |x| over the median norm of the fitted states."""
        return self._one(x, "norm_ratio")

    @takes_arrays
    def cosine(self, x: States) -> Float[Tensor, "*batch"]:
        """Raw: the cosine of x and the mean of the fitted states."""
        return self._one(x, "cosine")

    @takes_arrays
    def measure(self, x: Float[Tensor, "row d_model"]) -> Drift:
        """Every detector's number, percentile and rank, and the joint p-value, neighbours being sought once.

        Raises:
            ValueError: states of another width, zero, or not finite (which and how many).
        """
        scores = self._scores(x, tuple(DETECTORS))
        loud = self._loudness(scores)
        ranks, percentiles = {}, {}
        for name, values in scores.items():
            real = self._real(name)
            percentiles[name] = 1 - two_sided(values, real)
            ranks[name] = 1 - share_at_least(values, real)
        out = {name: values.to(x.dtype) for name, values in scores.items()}
        return Drift(out, percentiles, ranks, share_at_least(loud, self._real_loudness))

    @takes_arrays
    def percentile(self, x: Float[Tensor, "row d_model"]) -> dict[str, Float[Tensor, " row"]]:
        """Each detector's two-sided percentile among held-out real states, and under "combined" 1 - the joint p-value.

        0.95 or more happens to one real state in twenty. Raises as `measure`.
        """
        drift = self.measure(x)
        return drift.percentiles | {COMBINED: 1 - drift.p_value}

    @takes_arrays
    def p_value(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        """The joint verdict of the six detectors of PANEL: the rank of the smallest p-value among held-out real ones.

        Each held-out state's smallest p-value is computed as if it had not been held out, so that the false-alarm rate
        is exact for any dependence among the detectors. Raises as `measure`.
        """
        loud = self._loudness(self._scores(x, PANEL))
        return share_at_least(loud, self._real_loudness)

    @takes_arrays
    def drifted(self, x: Float[Tensor, "row d_model"], *, rate: float = 0.05) -> Bool[Tensor, " row"]:
        """Whether each state is rarer than a share `rate` of real ones: the false alarms among real states.

        Raises:
            ValueError: a rate that the number of held-out states cannot resolve; or as `measure`.
        """
        lowest = 1 / (len(self.held_out) + 1)
        if not lowest <= rate < 1:
            raise ValueError(
                f"rate is {rate}; {len(self.held_out)} held-out states resolve {lowest:.2g} and more, below 1"
            )
        return self.p_value(x) <= rate

    def false_alarms(self, *, rate: float = 0.05) -> dict[str, float]:
        """The share of held-out real states that each detector, and the panel as "combined", calls drifted at the rate.

        Each tenth of the held-out documents is judged by the others alone: what to expect of new documents.

        Raises:
            ValueError: a rate that the number of held-out states cannot resolve.
        """
        panel = [list(DETECTORS).index(name) for name in PANEL]
        each, jointly = alarm_shares(self.held_out_scores, self.held_out_groups, panel, rate=rate)
        return dict(zip(DETECTORS, each, strict=True)) | {COMBINED: jointly}

    @takes_arrays
    def auroc(self, on: Float[Tensor, "row d_model"], off: Float[Tensor, "other d_model"]) -> dict[str, Auroc]:
        """How well each detector, and the panel as "combined", separates `off` from `on`, real states of new documents.

        The combined verdict has no sides; it is in both columns.
        """
        scores = [self._scores(states, tuple(DETECTORS)) for states in (on, off)]
        return separation(*scores, *(self._surprises(some) for some in scores))

    def auroc_table(
        self, others: Mapping[str, Float[Tensor, "_ d_model"]] | None = None, *, seed: int = 0
    ) -> dict[str, dict[str, Auroc]]:
        """`auroc` of every family of known-off states (`latentcomm.drift.families`), family by family: which detector
        to believe here.

        Half of the held-out documents are the real states, each as rare as it is among all others held out, the other
        half what the families are made of; "real" is that other half itself. `others` adds families by name, such as a
        map's output, or another layer's states of the held-out documents, `other_layer_rows[reference.held_out_rows]`.

        Raises:
            ValueError: another family has the name of a built-in one; states of another width, zero or not finite.
        """
        others = {} if others is None else others
        if taken := sorted(set(FAMILIES) & set(others)):
            raise ValueError(f"{', '.join(taken)} is built in; give the other family another name")
        halves = self.held_out_groups.unique()
        halves = halves[torch.randperm(len(halves), generator=torch.Generator().manual_seed(seed))]
        first = torch.isin(self.held_out_groups, halves[: len(halves) // 2])
        real = {name: self._real(name) for name in DETECTORS}
        rare = {name: held_out_surprise(values) for name, values in real.items()}  # as if each were not held out
        on, rare_on = those(real, first), those(rare, first)
        made = known_off(self.held_out[~first], self.held_out_groups[~first], self.manifold.bank, seed=seed)
        out = {}
        for name, states in (made | dict(others)).items():
            if name == "real":
                out[name] = separation(on, those(real, ~first), rare_on, those(rare, ~first))
                continue
            off = self._scores(states, tuple(DETECTORS))
            out[name] = separation(on, off, rare_on, self._surprises(off))
        return out

    @takes_arrays
    def set_drift(
        self, x: Float[Tensor, "row d_model"], *, groups: Groups | None = None, n_splits: int = 10, seed: int = 0
    ) -> SetDrift:
        """Energy distance and classifier AUROC of a set of states in the RMS view, as an excess over real against real.

        Raises:
            ValueError: as `latentcomm.drift.sets.set_drift`.
        """
        self._require(x)
        ours, real = rms_normalised(x), rms_normalised(self.held_out)
        return set_drift(ours, real, real_groups=self.held_out_groups, x_groups=groups, n_splits=n_splits, seed=seed)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the reference as one safetensors file, whole or not at all; what `load` reads back is bit-identical.

        Raises:
            RuntimeError: the file cannot be written; an earlier file remains.
        """
        facts = {
            "kind": FILE_KIND,
            "site": json.dumps(None if self.site is None else self.site.hook_name),
            "model": json.dumps(self.model),
            "states": json.dumps(self.kind),
            "seed": json.dumps(self.seed),
            "n_fitted": json.dumps(self.n_fitted),
            "sinks_by_position": json.dumps(self.sinks_by_position),
            "sinks_by_norm": json.dumps(self.sinks_by_norm),
            "detectors": json.dumps(list(DETECTORS)),
        }
        parts = self.manifold.tensors() | {name: getattr(self, name) for name in HELD_OUT}
        write_tensors(path, parts, facts)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        site: Site | None = None,
        model: str | None = None,
        kind: str | None = None,
    ) -> "DriftReference":
        """Return the reference that `save` wrote, if it is of the site, model and kind given.

        Raises:
            ValueError: the file is not a saved reference, or one of another site, model or kind.
            FileNotFoundError: there is no such file.
        """
        try:
            facts, parts = read_tensors(path)
        except UnreadableError as error:
            raise ValueError(f"{error}; give a file of DriftReference.save") from error
        if (kind_found := facts.get("kind", "no kind at all")) != FILE_KIND:
            raise ValueError(f"{path} is marked {kind_found}, not {FILE_KIND}; give a file of DriftReference.save")
        if facts.get("detectors") != json.dumps(list(DETECTORS)):
            raise ValueError(f"{path} holds the detectors {facts.get('detectors')}, not today's; fit it again")
        try:
            found = cls._of_parts(facts, parts)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} holds no whole reference; give a file of DriftReference.save") from error
        found.require(site=site, model=model, kind=kind)
        return found

    @classmethod
    def _of_parts(cls, facts: Mapping[str, str], parts: Mapping[str, Tensor]) -> "DriftReference":
        """The reference of what a file holds."""
        hook_name = json.loads(facts["site"])
        return cls(
            site=None if hook_name is None else Site.parse(hook_name),
            model=json.loads(facts["model"]),
            kind=json.loads(facts["states"]),
            seed=json.loads(facts["seed"]),
            n_fitted=json.loads(facts["n_fitted"]),
            sinks_by_position=json.loads(facts["sinks_by_position"]),
            sinks_by_norm=json.loads(facts["sinks_by_norm"]),
            manifold=Manifold.of_tensors(parts),
            **{name: parts[name] for name in HELD_OUT},
        )

    def _one(self, x: States, name: str) -> Float[Tensor, "*batch"]:
        """One detector's number for states with any leading axes, in their dtype."""
        self._require(x)
        flat = x.reshape(-1, x.shape[-1])
        return measure_all(self.manifold, flat, [name])[name].to(x.dtype).reshape(x.shape[:-1])

    def _scores(self, x: Float[Tensor, "row d_model"], names: Sequence[str]) -> dict[str, Float[Tensor, " row"]]:
        """The named detectors' numbers, in float64."""
        self._require(x)
        return measure_all(self.manifold, x, names)

    def _surprises(self, scores: Scores) -> dict[str, Float[Tensor, " row"]]:
        """How rare each detector's numbers are among those of the held-out states."""
        return {name: surprise(values, self._real(name)) for name, values in scores.items()}

    def _loudness(self, scores: Mapping[str, Float[Tensor, " row"]]) -> Float[Tensor, " row"]:
        """The panel's largest surprise at each state."""
        return combined_surprise(torch.stack([surprise(scores[name], self._real(name)) for name in PANEL], 1))

    @functools.cached_property
    def _real_loudness(self) -> Float[Tensor, " real"]:
        """The same for every held-out state among the others."""
        return combined_surprise(torch.stack([held_out_surprise(self._real(name)) for name in PANEL], 1))

    def _real(self, name: str) -> Float[Tensor, " real"]:
        """One detector's numbers for the held-out states."""
        return self.held_out_scores[:, list(DETECTORS).index(name)].contiguous()

    def _require(self, x: States) -> None:
        """Refuse states that the reference cannot judge."""
        if x.shape[-1] != self.d_model:
            raise ValueError(f"the states are {x.shape[-1]} wide but {self!r}; fit a reference at their site")
        require_finite(x, "states")


HELD_OUT = ("held_out", "held_out_rows", "held_out_groups", "held_out_scores")
"""The parts of a reference that its file holds besides its manifold."""
