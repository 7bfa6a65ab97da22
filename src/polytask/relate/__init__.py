"""Relate: which tasks help each other, which to train together, and what to label next."""

from polytask.relate.active_sources import Sampled, active_sources, representation
from polytask.relate.alternating_selection import alternating_selection
from polytask.relate.ant import ant, ant_by_value
from polytask.relate.attributions import attribute, attributions
from polytask.relate.bald import bald, disagreement
from polytask.relate.base import Affinity, Groups, Losses, Watch
from polytask.relate.bento import bento
from polytask.relate.best_labels import best_labels
from polytask.relate.cka import cka
from polytask.relate.consistency import Chosen, consistency_diversity
from polytask.relate.core_set import core_set
from polytask.relate.covers import cover
from polytask.relate.data_maps import DataMaps
from polytask.relate.exact import exact
from polytask.relate.facility import Kept, facility_location
from polytask.relate.gains import Gains, member_of
from polytask.relate.gradient_cosine import GradientCosine
from polytask.relate.gradient_length import expected_gradient_length
from polytask.relate.greedy import greedy
from polytask.relate.hoa import hoa
from polytask.relate.inconsistency import inconsistency
from polytask.relate.label_correlation import label_correlation
from polytask.relate.lasso_relevance import lasso_relevance
from polytask.relate.mas import mas
from polytask.relate.mtg_net import MTGNet
from polytask.relate.picks import Picks
from polytask.relate.rank_combination import rank_combination
from polytask.relate.relevance import allocate
from polytask.relate.ridge_relevance import ridge_relevance
from polytask.relate.rsa import rsa
from polytask.relate.stg_mtl import SoftGroups, stg_mtl
from polytask.relate.tag import TAG
from polytask.relate.task_vectors import task_vectors
from polytask.relate.transfer import transfer
from polytask.relate.uncertain import uncertain

__all__ = [
    "TAG",
    "Affinity",
    "Chosen",
    "DataMaps",
    "Gains",
    "GradientCosine",
    "Groups",
    "Kept",
    "Losses",
    "MTGNet",
    "Picks",
    "Sampled",
    "SoftGroups",
    "Watch",
    "active_sources",
    "allocate",
    "alternating_selection",
    "ant",
    "ant_by_value",
    "attribute",
    "attributions",
    "bald",
    "bento",
    "best_labels",
    "cka",
    "consistency_diversity",
    "core_set",
    "cover",
    "disagreement",
    "exact",
    "expected_gradient_length",
    "facility_location",
    "greedy",
    "hoa",
    "inconsistency",
    "label_correlation",
    "lasso_relevance",
    "mas",
    "member_of",
    "rank_combination",
    "representation",
    "ridge_relevance",
    "rsa",
    "stg_mtl",
    "task_vectors",
    "transfer",
    "uncertain",
]
