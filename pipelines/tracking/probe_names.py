"""What a metric's entry in the list of names holds, and the metrics of the probes of nodules; see `names.py`."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric, or a family of metrics.

    Attributes:
        pattern: The name; in a family, alternatives are in braces with commas between, as in a shell.
        unit: Of the value.
        meaning: One line.
    """

    pattern: str
    unit: str
    meaning: str

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the family."""
        parts = [part.split(",") for part in re.split(r"[{}]", self.pattern)]
        return tuple("".join(chosen) for chosen in itertools.product(*parts))


CI = "{,_ci_low,_ci_high}"
"""The value and its 95% interval, over patients unless said otherwise."""
STRATUM = "{,_6_15mm}"
"""All nodules, or those of 6 to 15 mm."""
COUNT, SHARE, AUROC, NATS = "count", "0 .. 1", "AUROC, 0 .. 1", "nats"

PROBES = (
    Metric(
        "{probe,external}/{,diameter_,pixels_,random_,hu_,dictionary_,random_words_,image_diameter_,supervised_2d_,supervised_3d_,finetuned_}"
        "auroc" + CI + STRATUM,
        AUROC,
        "of the features, readers' diameter (an oracle), pixels, random weights (mean of twins), HU inside the nodule, "
        "dictionaries of whitened patches (learned, random), diameter measured in the image, ResNet18, the "
        "backbone trained on labels",
    ),
    Metric(
        "{probe,external}/{,pixels_,random_,hu_,dictionary_,random_words_,finetuned_}with_diameter_auroc"
        + CI
        + STRATUM,
        AUROC,
        "of each joined with the readers' diameter",
    ),
    Metric(
        "{probe,external}/{,pixels_,random_,hu_,dictionary_,random_words_,finetuned_}gain_over_diameter"
        + CI
        + STRATUM,
        "AUROC",
        "joined with the readers' diameter, minus it alone; useless features lower it",
    ),
    Metric(
        "{probe,external}/{,pixels_,random_,hu_,dictionary_,random_words_,finetuned_}gain_over_diameter_p"
        + STRATUM,
        "p",
        "two-sided p of this gain",
    ),
    Metric(
        "{probe,external}/with_image_diameter_auroc" + CI + STRATUM,
        AUROC,
        "of the features joined with the diameter in the image",
    ),
    Metric(
        "{probe,external}/gain_over_image_diameter{,_ci_low,_ci_high,_p}" + STRATUM,
        "AUROC; p",
        "this, minus the diameter in the image alone",
    ),
    Metric(
        "probe/others_spacing_auroc" + CI,
        AUROC,
        "of a network that takes the spacing, when each nodule is told another's: a control",
    ),
    Metric(
        "probe/shuffled_auroc{,_lowest,_highest}" + STRATUM,
        AUROC,
        "of features fitted to permuted labels: mean of the permutations, lowest and highest",
    ),
    Metric(
        "{probe,external}/{n_nodules,n_positive,n_patients}" + STRATUM,
        COUNT,
        "tested nodules, malignant ones, patients",
    ),
    Metric(
        "{probe,external}/{,random_,dictionary_,random_words_,joined_}nested_z",
        "standard deviations",
        "primary test, do features predict the rating beyond size and attenuation: distance above its reference",
    ),
    Metric(
        "probe/permuted_nested_z",
        "standard deviations",
        "control: mean of 20 tests of features that nodules of like diameter exchanged; a little below 0",
    ),
    Metric(
        "probe/over_diameter_z",
        "standard deviations",
        "the test over diameter alone, a weak base: descriptive, nothing is claimed from it",
    ),
    Metric("{probe,external}/nested_p", "p", "one-sided p of the primary test, by sign flips"),
    Metric(
        "{probe,external}/partial_spearman" + CI,
        "-1 .. 1",
        "rank correlation of predicted and observed rating, beyond size and attenuation",
    ),
    Metric(
        "{probe,external}/partial_r2" + CI,
        "share of variance",
        "explained of what size and attenuation leave",
    ),
    Metric(
        "{probe,external}/{random_,dictionary_,random_words_,joined_}partial_r2" + CI,
        "share of variance",
        "the same of random weights, of dictionaries of whitened patches (learned without labels, and random), and of "
        "features and dictionary joined",
    ),
    Metric(
        "{probe,external}/over_random_r2" + CI,
        "share of variance",
        "partial R2 minus that of the random twins, up to five networks of its architecture",
    ),
    Metric(
        "{probe,external}/dictionary_over_random_r2" + CI,
        "share of variance",
        "partial R2 of the dictionary minus that of the random twins: above 0 where the cohort can tell them apart",
    ),
    Metric(
        "probe/joined_over_dictionary_r2" + CI,
        "share of variance",
        "partial R2 of features and dictionary joined minus that of the dictionary: what the features add to it",
    ),
    Metric(
        "{probe,external}/n_unknown_diameter",
        COUNT,
        "tested nodules that rows with the readers' diameter are without; logged where there are any",
    ),
    Metric(
        "external/n_unknown_patients", COUNT, "patients of the test cohort that may have been seen before"
    ),
    Metric(
        "external/{,random_,dictionary_}few_shot_auroc{,_lowest,_highest}",
        AUROC,
        "fitted on as many nodules as the step says, scored on the test cohort: mean of 20 draws, lowest, highest",
    ),
    Metric(
        "probe/other_reader_{,with_diameter_}auroc" + CI + STRATUM,
        AUROC,
        "of the marks of one reader, for what three others rated: a ceiling",
    ),
    Metric(
        "probe/other_reader_gain_over_diameter{,_ci_low,_ci_high,_p}" + STRATUM,
        "AUROC; p",
        "with diameter, minus it",
    ),
    Metric("probe/other_reader_n_nodules", COUNT, "nodules with four readers"),
    Metric(
        "known/{calcification,texture,spiculation,lobulation,margin,sphericity}_{nested_z,nested_p}",
        "standard deviations; p",
        "the primary test with this characteristic in the rating's place",
    ),
    Metric(
        "known/{calcification,texture,spiculation,lobulation,margin,sphericity}_partial_spearman" + CI,
        "-1 .. 1",
        "rank correlation of predicted and observed characteristic, beyond size and attenuation",
    ),
    Metric("known/calcification_auroc" + CI, AUROC, "for the calcification that most readers saw"),
    Metric(
        "probe/{,random_}target_spearman" + CI,
        "-1 .. 1",
        "rank correlation of a column and its out-of-fold prediction",
    ),
    Metric(
        "probe/{,random_}target_auroc", AUROC, "of a column's classes, each against the others: their mean"
    ),
    Metric(
        "probe/finetuned_over_frozen{,_ci_low,_ci_high,_p}",
        "AUROC; p",
        "the backbone trained on labels, minus the same backbone frozen",
    ),
    Metric(
        "probe/finetuned_nested_p",
        "p",
        "primary test of the logits of the backbone trained on labels: twice the median of the folds' p",
    ),
    Metric(
        "probe/finetuned_partial_spearman" + CI,
        "-1 .. 1",
        "rank correlation of these logits and the rating, beyond size and attenuation",
    ),
    Metric(
        "finetune/{,supervised_2d_,supervised_3d_}loss",
        NATS,
        "balanced cross-entropy of an epoch's training batches; step: epochs of all folds",
    ),
    Metric(
        "finetune/{,supervised_2d_,supervised_3d_}validation_loss",
        NATS,
        "the same of the patients set aside for early stopping",
    ),
    Metric(
        "finetune/{,supervised_2d_,supervised_3d_}validation_auroc",
        AUROC,
        "of the patients set aside for early stopping",
    ),
    Metric("finetune/trained_parameters", COUNT, "parameters that learn"),
    Metric("finetune/trained_share", SHARE, "of the parameters of backbone and head"),
    Metric("probe/max_epochs", COUNT, "most epochs of a supervised network"),
    Metric(
        "aggregation/{center,mean,max,center3_mean,center3_max,attention_z,attention_center,planes,volumetric,"
        "volumetric_random}_auroc" + CI,
        AUROC,
        "of one way to combine the slices of a nodule into one vector; attention_center: the network of attention_z "
        "on the center slice alone; volumetric: a 3D backbone on the cube, and its random twin",
    ),
    Metric(
        "aggregation/{mean,max,center3_mean,center3_max,attention_z,planes,volumetric}_gain" + CI,
        "AUROC",
        "this way, minus the center slice alone",
    ),
    Metric(
        "aggregation/{mean,max,center3_mean,center3_max,attention_z,planes,volumetric}_gain_p_holm",
        "p",
        "p of this gain after Holm's correction",
    ),
    Metric(
        "aggregation/attention_z_over_own_center{,_ci_low,_ci_high,_p}",
        "AUROC; p",
        "attention over the slices, minus the same network on the center slice alone: what the neighbors add",
    ),
    Metric(
        "aggregation/volumetric_over_random{,_ci_low,_ci_high,_p}",
        "AUROC; p",
        "the 3D backbone on the cube, minus its random twin: what it learned",
    ),
    Metric("aggregation/n_nodules", COUNT, "tested nodules"),
    Metric(
        "dense/{,random_weights_,pixels_,inter_reader_}dice" + CI,
        "Dice, 0 .. 1",
        "of predicted masks; of readers",
    ),
    Metric("dense/gain_over_pixels" + CI, "Dice", "features, minus gray values"),
    Metric("dense/gain_over_pixels_p", "p", "two-sided p of this gain"),
    Metric("dense/n_nodules", COUNT, "tested nodules"),
)
