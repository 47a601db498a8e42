"""Figures: effective sample size against width, and the phase diagram of an activation."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from bnnwide.arch import Activation, signal_propagation
from bnnwide.checks import check_count, check_positive

_PANELS = (
    ("ess_per_grad", "per gradient evaluation"),
    ("ess_per_second", "per second of sampling"),
)


def plot_ess_by_width(table: xr.Dataset) -> Figure:
    """Plot ESS per gradient and per second against width, log-log, one line per method.

    Solid lines are the minimum over predictions and projections, dashed ones the median. Cells without an ESS are left
    out; an ESS of 0 is drawn as a cross at the foot of the panel.

    Args:
      table: what `ess_by_width` returned.

    Returns:
      A matplotlib figure, not shown and not saved.

    Raises:
      TypeError: if `table` has not the figures it needs.
    """
    if not isinstance(table, xr.Dataset) or "ess_per_grad_min" not in table:
        raise TypeError("`plot_ess_by_width`: table must be what ess_by_width(...) returns")
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    widths = table.width.values
    for axis, (name, title) in zip(axes, _PANELS, strict=True):
        for i, method in enumerate(table.method.values):
            least, middle = (table[f"{name}_{which}"].sel({"method": method}).values for which in ("min", "median"))
            color = f"C{i % 10}"
            axis.plot(widths, np.where(least > 0, least, np.nan), "o-", color=color, label=str(method))
            axis.plot(widths, np.where(middle > 0, middle, np.nan), "--", color=color, alpha=0.6, linewidth=1)
            for stuck in widths[least == 0]:
                axis.plot(stuck, 0, "x", color=color, transform=axis.get_xaxis_transform(), clip_on=False)
        drawn = np.nanmax(table[f"{name}_median"].values, initial=0) > 0
        axis.set(xscale="log", yscale="log" if drawn else "linear", xlabel="width", title=f"ESS {title}")
        axis.set_xlim(widths.min() / 1.3, widths.max() * 1.3)
        axis.set_xticks(widths, [str(width) for width in widths])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("bulk ESS: minimum (solid), median (dashed)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
    figure.suptitle(
        f"{table.attrs.get('n', '?')} training inputs, {table.attrs.get('likelihood', '')}, "
        f"{table.attrs.get('precision', '')}, {table.attrs.get('device', '')}",
        fontsize=9,
    )
    return figure


def plot_phase_diagram(
    activation: Activation, *, max_w_scale: int | float = 3.0, max_b_scale: int | float = 2.0, resolution: int = 80
) -> Figure:
    """Plot chi and the depth scale of correlations of deep networks over (w_scale, b_scale).

    The line chi = 1 is where deep networks stay trainable and their kernels keep inputs apart: how to pick the scales
    of a prior. Source: Schoenholz et al. 2017 (arXiv 1611.01232), figures 1 and 2.

    Args:
      activation: the activation.
      max_w_scale: right edge.
      max_b_scale: upper edge.
      resolution: points along an axis.

    Returns:
      A matplotlib figure, not shown and not saved.

    Raises:
      TypeError: if `activation` is no activation.
    """
    check_count("plot_phase_diagram", "resolution", resolution, 2)
    check_positive("plot_phase_diagram", "max_w_scale", max_w_scale)
    check_positive("plot_phase_diagram", "max_b_scale", max_b_scale)
    w, b = np.meshgrid(
        np.linspace(max_w_scale / resolution, max_w_scale, resolution), np.linspace(0, max_b_scale, resolution)
    )
    deep = signal_propagation(activation, w, b)
    chi = np.asarray(deep.chi)
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    reach = max(abs(np.log10(np.clip(chi, 1e-2, 1e2))).max(), 0.1)
    shown = left.pcolormesh(w, b, np.log10(np.clip(chi, 1e-2, 1e2)), cmap="RdBu_r", vmin=-reach, vmax=reach)
    figure.colorbar(shown, ax=left, label="log10 chi (ordered < 0 < chaotic)")
    depths = np.log10(np.clip(np.asarray(deep.correlation_length), 0.1, 1e3))
    shown = right.pcolormesh(w, b, depths, cmap="viridis", vmin=-1, vmax=3)
    figure.colorbar(shown, ax=right, label="log10 correlation length in layers")
    for axis, title in ((left, "growth of gradients per layer"), (right, "depth that correlations survive")):
        if chi.min() < 1 < chi.max():
            axis.contour(w, b, chi, levels=[1.0], colors="black", linewidths=1.2)
        axis.set(xlabel="w_scale", title=title)
    left.set_ylabel("b_scale")
    figure.suptitle(f"Deep networks of {activation}; black: critical, chi = 1", fontsize=10)
    return figure
