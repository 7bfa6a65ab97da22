"""The one table of methods. Listing it loads nothing; `load` imports one method.

Adding a method is a file, a row here, and a reference value in the tests. The command line, the
reports and the tests read this table; nothing registers itself.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from polytask.errors import unknown

ROOMS = (
    "share", "balance", "mix", "adapt", "merge", "relate", "trade", "extend", "act", "classic",
)  # fmt: skip
"""The rooms methods live in. A room without a row yet is still to come."""


@dataclass(frozen=True)
class Method:
    """One row.

    target: "module:attribute", imported only when the method is used.
    wraps: true for what stands around another method of its room, such as "every-n".
    """

    name: str
    room: str
    target: str
    summary: str
    source: str
    wraps: bool = False

    def load(self) -> Any:
        """Import the method and return the object that `target` names."""
        return load(self.target)


def load(target: str) -> Any:
    """Import and return what "module:attribute" names."""
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)


METHODS: tuple[Method, ...] = (
    Method(
        "hard", "share", "polytask.share.hard:HardSharing",
        "one encoder for all tasks, one head per task",
        "Caruana, Multitask Learning, Machine Learning 1997, doi:10.1023/A:1007379606734",
    ),
    Method(
        "mmoe", "share", "polytask.share.mmoe:MMoE",
        "shared experts, mixed for each task by a softmax gate of its own",
        "Ma et al., KDD 2018, doi:10.1145/3219819.3220007",
    ),
    Method(
        "mmoeex", "share", "polytask.share.mmoeex:MMoEEx",
        "MMoE with experts open to one task alone, or closed to one",
        "Aoki, Tung & Oliveira, IEEE/ACM TCBB 2022, arXiv:2106.10595",
    ),
    Method(
        "cgc", "share", "polytask.share.cgc:CGC",
        "experts of each task beside shared ones, a gate per task over both",
        "Tang et al., RecSys 2020, doi:10.1145/3383313.3412236",
    ),
    Method(
        "ple", "share", "polytask.share.ple:PLE",
        "CGC in levels, with a shared part that sees every expert in between",
        "Tang et al., RecSys 2020, doi:10.1145/3383313.3412236",
    ),
    Method(
        "home", "share", "polytask.share.home:HoME",
        "experts of all tasks, of categories and of tasks, with self and feature gates",
        "Wang et al., KDD 2025, arXiv:2408.05430",
    ),
    Method(
        "dselect-k", "share", "polytask.share.dselect_k:DSelectK",
        "gates that settle on at most k experts, by smooth codes",
        "Hazimeh et al., NeurIPS 2021, arXiv:2106.03760",
    ),
    Method(
        "cross-stitch", "share", "polytask.share.cross_stitch:CrossStitch",
        "a network per task; layers exchange activations by trained parts",
        "Misra et al., CVPR 2016, arXiv:1604.03539",
    ),
    Method(
        "sluice", "share", "polytask.share.sluice:Sluice",
        "a network per task; subspaces of layers are exchanged, layers mixed",
        "Ruder et al., AAAI 2019, arXiv:1705.08142",
    ),
    Method(
        "stem", "share", "polytask.share.stem:STEM",
        "embedding tables of each task beside a shared one, gates over all experts",
        "Su et al., AAAI 2024, arXiv:2308.13537",
    ),
    Method(
        "apem", "share", "polytask.share.apem:APEM",
        "patterns of the feature fields, weighed by an indicator of each task",
        "Tao et al., 2023, arXiv:2301.02494",
    ),
    Method(
        "dtrn", "share", "polytask.share.dtrn:DTRN",
        "interests and weights of the feature fields for each task, by a hypernetwork",
        "Liu et al., CIKM 2023, arXiv:2308.05996",
    ),
    Method(
        "sparse-moe", "share", "polytask.share.sparse_moe:SparseMoE",
        "a gate sends every row to a few experts; the others do not run",
        "Fedus, Zoph & Shazeer, JMLR 2022, arXiv:2101.03961; Qiu et al., arXiv:2501.11873",
    ),
    Method(
        "task-gating", "share", "polytask.share.task_gating:TaskGating",
        "sparse experts, chosen by task: fixed, by gates of its own, or by its embedding",
        "Gupta et al. 2022, arXiv:2204.07689",
    ),
    Method(
        "skillnet", "share", "polytask.share.skillnet:SkillNet",
        "modules for skills; those a task lists run, and a generic one",
        "Zhang et al. 2022, arXiv:2203.03312",
    ),
    Method(
        "learning-to-branch", "share", "polytask.share.learning_to_branch:LearningToBranch",
        "a tree of layers, found by drawing every node's parent",
        "Guo, Lee & Ulbricht, ICML 2020, arXiv:2006.01895",
    ),
    Method(
        "dsmtl", "share", "polytask.share.dsmtl:DSMTL",
        "a shared model and one of each task's own, mixed by a gate per task",
        "Yue et al. 2021, arXiv:2111.10601",
    ),
    Method(
        "multimodn", "share", "polytask.share.multimodn:MultiModN",
        "a state through one encoder per modality; missing ones are passed by",
        "Swamy et al., NeurIPS 2023, arXiv:2309.14118",
    ),
    Method(
        "aitm", "share", "polytask.share.aitm:AITM",
        "steps in order: each weighs what the step before hands on",
        "Xi et al., KDD 2021, arXiv:2105.08489",
    ),
    Method(
        "esmm", "share", "polytask.share.esmm:ESMM",
        "steps in order: each output is the product of all probabilities so far",
        "Ma et al., SIGIR 2018, arXiv:1804.07931",
    ),
    Method(
        "mtan", "share", "polytask.share.mtan:MTAN",
        "pictures: one network, and a mask per task over the features of each stage",
        "Liu, Johns & Davison, CVPR 2019, arXiv:1803.10704",
    ),
    Method(
        "m3vit", "share", "polytask.share.m3vit:M3ViT",
        "pictures: a transformer whose odd blocks choose a few of many experts per task and token",
        "Liang et al., NeurIPS 2022, arXiv:2210.14793",
    ),
    Method(
        "medusa", "share", "polytask.share.medusa:Medusa",
        "pictures: heads that attend to the scales of a generic network",
        "Spencer, Bowden & Hadfield, CVPR Workshops 2022, arXiv:2204.05698",
    ),
    Method(
        "task-expert", "share", "polytask.share.task_expert:TaskExpert",
        "pictures: experts at several layers, mixed per task, with a memory as one more",
        "Ye & Xu, ICCV 2023, arXiv:2307.15324",
    ),
    Method(
        "equal", "balance", "polytask.balance.equal:Equal",
        "the sum of the losses, every weight 1",
        "the baseline; no source",
    ),
    Method(
        "uncertainty", "balance", "polytask.balance.uncertainty:Uncertainty",
        "weights from learned noise of each task",
        "Kendall, Gal & Cipolla, CVPR 2018, arXiv:1705.07115",
    ),
    Method(
        "dwa", "balance", "polytask.balance.dwa:DWA",
        "raises the weight of tasks whose loss falls slowest",
        "Liu, Johns & Davison, CVPR 2019, arXiv:1803.10704",
    ),
    Method(
        "fixed", "balance", "polytask.balance.fixed:Fixed",
        "constant weights, one per task, such as fixed:weights=1/0.5/2",
        "the baseline; see Kurin et al., NeurIPS 2022, arXiv:2201.04122",
    ),
    Method(
        "gls", "balance", "polytask.balance.gls:GLS",
        "the geometric mean of the losses",
        "Chennupati et al., CVPR Workshops 2019, arXiv:1904.08492",
    ),
    Method(
        "rlw", "balance", "polytask.balance.rlw:RLW",
        "weights drawn anew at every step, the control",
        "Lin et al., TMLR 2022, arXiv:2111.10603",
    ),
    Method(
        "imtl-l", "balance", "polytask.balance.imtl_l:IMTLL",
        "learned scales that bring every loss to 1",
        "Liu et al., ICLR 2021, openreview:IMPnRXEWpvr",
    ),
    Method(
        "scale-invariant", "balance", "polytask.balance.scale_invariant:ScaleInvariant",
        "the sum of the losses' logarithms",
        "Navon et al., ICML 2022, arXiv:2202.01017",
    ),
    Method(
        "stch", "balance", "polytask.balance.stch:STCH",
        "a smooth maximum of the losses over their early levels",
        "Lin et al., ICML 2024, arXiv:2402.19078",
    ),
    Method(
        "famo", "balance", "polytask.balance.famo:FAMO",
        "equal relative falls of all losses, for one forward more",
        "Liu et al., NeurIPS 2023, arXiv:2306.03792",
    ),
    Method(
        "gradnorm", "balance", "polytask.balance.gradnorm:GradNorm",
        "learned weights that bring gradients to norms by training rate",
        "Chen et al., ICML 2018, arXiv:1711.02257",
    ),
    Method(
        "igb-v1", "balance", "polytask.balance.igb_v1:IGBv1",
        "more weight to tasks least improved since an early epoch",
        "Dai, Fei & Lu, UAI 2023, arXiv:2307.15429",
    ),
    Method(
        "igb-v2", "balance", "polytask.balance.igb_v2:IGBv2",
        "weights chosen by an agent that is rewarded by the least improved task",
        "Dai, Fei & Lu, UAI 2023, arXiv:2307.15429",
    ),
    Method(
        "coba", "balance", "polytask.balance.coba:CoBa",
        "weights from the slopes of validation losses",
        "Gong et al., EMNLP 2024, arXiv:2410.06741",
    ),
    Method(
        "pcgrad", "balance", "polytask.balance.pcgrad:PCGrad",
        "projects away the part of a gradient that conflicts with another task's",
        "Yu et al., NeurIPS 2020, arXiv:2001.06782",
    ),
    Method(
        "aligned-mtl", "balance", "polytask.balance.aligned_mtl:AlignedMTL",
        "aligns the principal components of the gradient matrix (condition number 1)",
        "Senushkin et al., CVPR 2023, arXiv:2305.19000",
    ),
    Method(
        "mgda", "balance", "polytask.balance.mgda:MGDA",
        "the shortest convex combination of the gradients: descends on every task",
        "Sener & Koltun, NeurIPS 2018, arXiv:1810.04650",
    ),
    Method(
        "sdmgrad", "balance", "polytask.balance.sdmgrad:SDMGrad",
        "MGDA pulled towards the mean gradient or another preferred direction",
        "Xiao, Ban & Ji, NeurIPS 2023, arXiv:2305.18409",
    ),
    Method(
        "moco", "balance", "polytask.balance.moco:MoCo",
        "MGDA on moving averages of the gradients",
        "Fernando et al., ICLR 2023, openreview dLAYGdKTi2",
    ),
    Method(
        "cagrad", "balance", "polytask.balance.cagrad:CAGrad",
        "near the mean gradient, the direction best for the task worst off",
        "Liu et al., NeurIPS 2021, arXiv:2110.14048",
    ),
    Method(
        "gradvac", "balance", "polytask.balance.gradvac:GradVac",
        "turns gradients until their cosines are at least the usual ones",
        "Wang et al., ICLR 2021, arXiv:2010.05874",
    ),
    Method(
        "imtl-g", "balance", "polytask.balance.imtl_g:IMTLG",
        "the update makes the same product with every unit gradient",
        "Liu et al., ICLR 2021, openreview IMPnRXEWpvr",
    ),
    Method(
        "config", "balance", "polytask.balance.conflict_free:ConFIG",
        "the direction of equal cosine with every gradient, as long as they project onto it",
        "Liu, Chu & Thuerey, ICLR 2025, arXiv:2408.11104",
    ),
    Method(
        "nash-mtl", "balance", "polytask.balance.nash_mtl:NashMTL",
        "the Nash bargaining solution among the tasks",
        "Navon et al., ICML 2022, arXiv:2202.01017",
    ),
    Method(
        "fairgrad", "balance", "polytask.balance.fairgrad:FairGrad",
        "the alpha-fair share of improvement among the tasks",
        "Ban & Ji, ICML 2024, arXiv:2402.15638",
    ),
    Method(
        "upgrad", "balance", "polytask.balance.upgrad:UPGrad",
        "each gradient projected until it conflicts with none, then their mean",
        "Quinton & Rey, 2024, arXiv:2406.16232",
    ),
    Method(
        "dualproj", "balance", "polytask.balance.dualproj:DualProj",
        "the mean gradient projected until it conflicts with no task",
        "Lopez-Paz & Ranzato, NeurIPS 2017, arXiv:1706.08840",
    ),
    Method(
        "graddrop", "balance", "polytask.balance.graddrop:GradDrop",
        "draws one sign per coordinate and drops gradients of the other",
        "Chen et al., NeurIPS 2020, arXiv:2010.06808",
    ),
    Method(
        "trimmed-mean", "balance", "polytask.balance.trimmed_mean:TrimmedMean",
        "the mean without the largest and smallest value of each coordinate",
        "Yin et al., ICML 2018, arXiv:1803.01498",
    ),
    Method(
        "every-n", "balance", "polytask.balance.every_n:EveryN",
        "around a method: its weights, found anew at every n-th update",
        "see Navon et al., ICML 2022, arXiv:2202.01017, section 5.3", wraps=True,
    ),
    Method(
        "feature-level", "balance", "polytask.balance.feature_level:FeatureLevel",
        "around a method: compares gradients at the features, for one backward pass (-UB)",
        "Sener & Koltun, NeurIPS 2018, arXiv:1810.04650, section 3.3", wraps=True,
    ),
    Method(
        "sampled-rows", "balance", "polytask.balance.sampled_rows:SampledRows",
        "around a method: looks at the gradients of a part of the rows",
        "own; see Chen et al., NeurIPS 2023, arXiv:2305.20057", wraps=True,
    ),
    Method(
        "flat-regions", "balance", "polytask.balance.flat_regions:FlatRegions",
        "around a method: leads every task to a flat region (F-MTL)",
        "Phan et al., 2022, arXiv:2211.13723", wraps=True,
    ),
    Method(
        "look-ahead", "balance", "polytask.balance.look_ahead:LookAhead",
        "around a method: gradients on rows kept back, after each task's own step (two-step)",
        "Aoki, Tung & Oliveira, 2021, arXiv:2106.10595", wraps=True,
    ),
    Method(
        "fuller", "balance", "polytask.balance.fuller:Fuller",
        "around a method: calibrates tasks at the features, then modality branches",
        "Huang et al., ICCV 2023, arXiv:2307.16617", wraps=True,
    ),
    Method(
        "proportional", "mix", "polytask.mix.proportional:Proportional",
        "every row of every stream equally often",
        "the baseline; see Raffel et al., JMLR 2020, arXiv:1910.10683, section 3.5.2",
    ),
    Method(
        "uniform", "mix", "polytask.mix.uniform:Uniform",
        "every stream equally often, whatever its size",
        "the baseline; see Raffel et al., JMLR 2020, arXiv:1910.10683, section 3.5.2",
    ),
    Method(
        "temperature", "mix", "polytask.mix.temperature:Temperature",
        "between proportional and uniform: sizes, capped, to the power 1/temperature",
        "Raffel et al., JMLR 2020, arXiv:1910.10683, section 3.5.2",
    ),
    Method(
        "fixed-rates", "mix", "polytask.mix.fixed_rates:FixedRates",
        "a constant share for each stream, chosen beforehand",
        "no source",
    ),
    Method(
        "nested", "mix", "polytask.mix.nested:Nested",
        "mixtures of mixtures: groups side by side, streams within; rates multiply",
        "Roberts et al., JMLR 2023, arXiv:2203.17189",
    ),
    Method(
        "over-time", "mix", "polytask.mix.over_time:OverTime",
        "shares that move from one temperature to the next during the run",
        "no source",
    ),
    Method(
        "curriculum", "mix", "polytask.mix.curriculum:Curriculum",
        "streams open one after another, from easy to hard; open ones mixed, or the newest alone",
        "Bhasin et al., NAACL 2024, arXiv:2404.03558",
    ),
    Method(
        "rich-first", "mix", "polytask.mix.rich_first:RichFirst",
        "the streams with many rows first, then a mix of all",
        "Choi et al., NeurIPS 2023, arXiv:2312.06134",
    ),
    Method(
        "dmt", "mix", "polytask.mix.dmt:DMT",
        "specialised streams first, then the general ones and a little of the specialised",
        "Dong et al., ACL 2024, arXiv:2310.05492",
    ),
    Method(
        "hinting", "mix", "polytask.mix.hinting:Hinting",
        "an easier task that hints at the main one takes a share of every step",
        "Awasthi & Gupta 2023, arXiv:2310.00726",
    ),
    Method(
        "skill-it", "mix", "polytask.mix.skill_it:SkillIt",
        "more of the streams that help, by a graph, where validation losses are high",
        "Chen et al., NeurIPS 2023, arXiv:2307.14430",
    ),
    Method(
        "loss-driven", "mix", "polytask.mix.loss_driven:LossDriven",
        "more of the streams whose validation loss, or gap to a reference, is largest",
        "Gottumukkala et al., ACL 2020, doi:10.18653/v1/2020.acl-main.86",
    ),
    Method(
        "alternating", "mix", "polytask.mix.alternating:Alternating",
        "one stream per step, in turn",
        "Akbari et al., NeurIPS 2023, arXiv:2305.06324",
    ),
    Method(
        "unmixed", "mix", "polytask.mix.unmixed:Unmixed",
        "around a mix: every step of one stream alone, as often as the mix says",
        "Li et al., CVPR 2023, arXiv:2211.09808",
        wraps=True,
    ),
    Method(
        "average", "merge", "polytask.merge.average:Average",
        "the weighted mean of the models",
        "Wortsman et al., ICML 2022, arXiv:2203.05482",
    ),
    Method(
        "task-arithmetic", "merge", "polytask.merge.task_arithmetic:TaskArithmetic",
        "the base, moved by the scaled sum of all changes",
        "Ilharco et al., ICLR 2023, arXiv:2212.04089",
    ),
    Method(
        "ties", "merge", "polytask.merge.ties:TIES",
        "the largest changes, and of them the mean of those with the elected sign",
        "Yadav et al., NeurIPS 2023, arXiv:2306.01708",
    ),
    Method(
        "dare", "merge", "polytask.merge.dare:DARE",
        "drops random changes, rescales the others and adds them up",
        "Yu et al., ICML 2024, arXiv:2311.03099",
    ),
    Method(
        "dare-ties", "merge", "polytask.merge.dare_ties:DareTies",
        "drops random changes, rescales the others, then TIES",
        "Yu et al., ICML 2024, arXiv:2311.03099",
    ),
    Method(
        "breadcrumbs", "merge", "polytask.merge.breadcrumbs:Breadcrumbs",
        "leaves out the smallest changes and the very largest",
        "Davari & Belilovsky, ECCV 2024, arXiv:2312.06795",
    ),
    Method(
        "pcb", "merge", "polytask.merge.pcb:PCB",
        "weighs changes by their size within a task and their agreement across tasks",
        "Du et al., NeurIPS 2024, arXiv:2410.02396",
    ),
    Method(
        "slerp", "merge", "polytask.merge.slerp:SLERP",
        "from one model to another along the arc between them",
        "Shoemake, SIGGRAPH 1985, doi:10.1145/325334.325242",
    ),
    Method(
        "model-stock", "merge", "polytask.merge.model_stock:ModelStock",
        "between base and average, nearer to the average the more the models agree",
        "Jang, Yun & Han, ECCV 2024, arXiv:2403.19522",
    ),
    Method(
        "tall-masks", "merge", "polytask.merge.tall_masks:TallMasks",
        "one task's model from the summed changes and a mask",
        "Wang et al., ICML 2024, arXiv:2405.07813",
    ),
    Method(
        "consensus", "merge", "polytask.merge.consensus:Consensus",
        "the summed changes where several tasks need them",
        "Wang et al., ICML 2024, arXiv:2405.07813",
    ),
    Method(
        "tsv-m", "merge", "polytask.merge.tsv_m:TSVM",
        "the tasks' largest singular vectors, made orthogonal to each other",
        "Gargiulo et al., CVPR 2025, arXiv:2412.00081",
    ),
    Method(
        "iso-c", "merge", "polytask.merge.iso_c:IsoC",
        "the summed changes, every direction made equally long",
        "Marczak et al., ICML 2025, arXiv:2502.04959",
    ),
    Method(
        "iso-cts", "merge", "polytask.merge.iso_cts:IsoCTS",
        "Iso-C on common directions and some of each task's own",
        "Marczak et al., ICML 2025, arXiv:2502.04959",
    ),
    Method(
        "adapter-merge", "merge", "polytask.merge.adapters:AdapterMerge",
        "LoRA and DoRA adapters become one whose change is the sum of theirs",
        "Hu et al., ICLR 2022, arXiv:2106.09685; Liu et al., ICML 2024, arXiv:2402.09353",
    ),
    Method(
        "fisher", "merge", "polytask.merge.fisher:Fisher",
        "unlabelled data: an average weighted by each weight's Fisher information",
        "Matena & Raffel, NeurIPS 2022, arXiv:2111.09832",
    ),
    Method(
        "regmean", "merge", "polytask.merge.regmean:RegMean",
        "unlabelled data: layers that answer as the tuned ones do on their own inputs",
        "Jin et al., ICLR 2023, arXiv:2212.09849",
    ),
    Method(
        "adamerging", "merge", "polytask.merge.adamerging:AdaMerging",
        "unlabelled data: coefficients that make the model sure of its answers",
        "Yang et al., ICLR 2024, arXiv:2310.02575",
    ),
    Method(
        "concrete", "merge", "polytask.merge.concrete:Concrete",
        "unlabelled data: one mask on the summed changes, searched for sure answers",
        "Tang et al. 2023, arXiv:2312.06173",
    ),
    Method(
        "concrete-adamerging", "merge", "polytask.merge.concrete_adamerging:ConcreteAdaMerging",
        "unlabelled data: a mask that suits coefficients which adapt to it",
        "Tang et al. 2023, arXiv:2312.06173",
    ),
    Method(
        "dam", "merge", "polytask.merge.dam:DAM",
        "unlabelled data: Concrete AdaMerging that stays sure under shifted inputs",
        "Yang et al. 2024, arXiv:2410.13910",
    ),
    Method(
        "surgery", "merge", "polytask.merge.surgery:Surgery",
        "unlabelled data: a small correction of the features before each head",
        "Yang et al., ICML 2024, arXiv:2402.02705",
    ),
    Method(
        "tinting", "merge", "polytask.merge.tinting:Tinting",
        "unlabelled data: coefficients and heads that answer as the tuned models do",
        "Jung et al. 2024, arXiv:2412.19098",
    ),
    Method(
        "atlas", "merge", "polytask.merge.atlas:ATLAS",
        "labels: a coefficient for every task and tensor, or part of a tensor",
        "Zhang et al., NeurIPS 2024, arXiv:2407.02880",
    ),
    Method(
        "self-positioning", "merge", "polytask.merge.self_positioning:SelfPositioning",
        "labels: a place between the models, by descent on a small balanced probe",
        "Li et al. 2024, arXiv:2410.15035",
    ),
    Method(
        "atm", "merge", "polytask.merge.atm:atm",
        "training: tune a little, merge, and begin again from there",
        "Zhou et al. 2024, arXiv:2411.03055",
    ),
    Method(
        "cold-fusion", "merge", "polytask.merge.cold_fusion:cold_fusion",
        "training: contributors tune the common model, their average is the next",
        "Don-Yehiya et al., ACL 2023, arXiv:2212.01378",
    ),
    Method(
        "grafting", "merge", "polytask.merge.grafting:Grafting",
        "the few entries that carry each task's skill, grafted onto the base",
        "Panigrahi et al., ICML 2023, arXiv:2302.06600",
    ),
    Method(
        "linear-probing", "adapt", "polytask.adapt.probing:LinearProbing",
        "the frozen base with a head for each task: what adapters are measured against",
        "Alain & Bengio, ICLR 2017 (workshop), arXiv:1610.01644",
    ),
    Method(
        "lora", "adapt", "polytask.adapt.lora:LoRA",
        "a product of two thin matrices added to a layer's weight; rsLoRA with stabilised=true",
        "Hu et al., ICLR 2022, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732",
    ),
    Method(
        "dora", "adapt", "polytask.adapt.dora:DoRA",
        "LoRA on the direction of every row of a weight, its length trained apart",
        "Liu et al., ICML 2024, arXiv:2402.09353",
    ),
    Method(
        "bottleneck", "adapt", "polytask.adapt.bottleneck:Bottleneck",
        "a narrow network after a layer or beside it, added, scaled or gated",
        "Houlsby et al., ICML 2019, arXiv:1902.00751; He et al., ICLR 2022, arXiv:2110.04366",
    ),
    Method(
        "mam", "adapt", "polytask.adapt.mam:MAM",
        "a short prefix in attention and a scaled parallel bottleneck around feed-forward blocks",
        "He et al., ICLR 2022, arXiv:2110.04366",
    ),
    Method(
        "ssf", "adapt", "polytask.adapt.ssf:SSF",
        "a scale and a shift of every channel of a layer's output; folds into the weights",
        "Lian et al., NeurIPS 2022, arXiv:2210.08823",
    ),
    Method(
        "bitfit", "adapt", "polytask.adapt.bitfit:BitFit",
        "biases alone; folds into them",
        "Ben Zaken, Ravfogel & Goldberg, ACL 2022, arXiv:2106.10199",
    ),
    Method(
        "prompt-tuning", "adapt", "polytask.adapt.prompt:PromptTuning",
        "trained embeddings before those of the input",
        "Lester, Al-Rfou & Constant, EMNLP 2021, arXiv:2104.08691",
    ),
    Method(
        "prefix-tuning", "adapt", "polytask.adapt.prefix:PrefixTuning",
        "trained keys and values before those of the input, in every attention",
        "Li & Liang, ACL 2021, arXiv:2101.00190",
    ),
    Method(
        "mtl-lora", "adapt", "polytask.adapt.mtl_lora:MTLLoRA",
        "one A, a small matrix of each task, several B that each task mixes its way",
        "Yang et al., AAAI 2025, arXiv:2410.09437",
    ),
    Method(
        "mtlora", "adapt", "polytask.adapt.mtlora:mtlora_at",
        "low-rank changes of all tasks everywhere, and of each task where tasks part",
        "Agiza, Neseem & Reda, CVPR 2024, arXiv:2403.20320",
    ),
    Method(
        "global-task", "adapt", "polytask.adapt.global_task:GlobalTask",
        "one LoRA of all tasks and one of each, added",
        "Agiza, Neseem & Reda, CVPR 2024, arXiv:2403.20320",
    ),
    Method(
        "shared-factor", "adapt", "polytask.adapt.shared_factor:SharedFactor",
        "LoRA whose A, or B, is one for all tasks",
        "Zhu et al., ICML 2024, arXiv:2402.16842; Guo et al., ICLR 2025, arXiv:2410.01463",
    ),
    Method(
        "polytropon", "adapt", "polytask.adapt.polytropon:Polytropon",
        "a few LoRA are skills, every task takes its own shares of them",
        "Ponti et al., EACL 2023, arXiv:2202.13914",
    ),
    Method(
        "mhr", "adapt", "polytask.adapt.mhr:MHR",
        "Polytropon with shares of every part of a skill; MHR-z and MHR-mu for a new task",
        "Caccia et al., NeurIPS 2023, arXiv:2211.03831",
    ),
    Method(
        "tensorpoly", "adapt", "polytask.adapt.tensorpoly:TensorPoly",
        "skills that are Kronecker products of short vectors; form II with mixes=leaves",
        "Su et al. 2024, arXiv:2405.16671",
    ),
    Method(
        "smora", "adapt", "polytask.adapt.smora:SMoRA",
        "one LoRA whose ranks are experts, the best few for every token",
        "Zhao et al. 2025, arXiv:2501.15103",
    ),
    Method(
        "loramoe", "adapt", "polytask.adapt.loramoe:LoRAMoE",
        "a softmax over LoRA for every token, halves of them kept for types of samples",
        "Dou et al., ACL 2024, arXiv:2312.09979",
    ),
    Method(
        "mosld", "adapt", "polytask.adapt.mosld:MoSLD",
        "experts with one A together and B of their own, the best few for every token",
        "Zhao et al., COLING 2025, arXiv:2412.08946",
    ),
    Method(
        "mor1e", "adapt", "polytask.adapt.mor1e:MoR1E",
        "experts of rank 1, weighed by a router and by what an instance resembles",
        "Liu et al. 2024, arXiv:2404.08985",
    ),
    Method(
        "arrow", "adapt", "polytask.adapt.arrow:Arrow",
        "a library of trained LoRA, chosen for every token by the directions they act along",
        "Ostapenko et al., ICML 2024, arXiv:2405.11157",
    ),
    Method(
        "mbc", "adapt", "polytask.adapt.mbc:clusters_of",
        "LoRA with like weights put together, one for each cluster",
        "Ostapenko et al., ICML 2024, arXiv:2405.11157",
    ),
    Method(
        "scalearn", "adapt", "polytask.adapt.scalearn:ScaLearn",
        "a trained share of what each source task's adapter changes; Uniform and ++ as settings",
        "Frohmann et al., Findings of ACL 2024, arXiv:2310.01217",
    ),
    Method(
        "adapter-fusion", "adapt", "polytask.adapt.fusion:AdapterFusion",
        "attention over what source tasks' adapters change, token by token",
        "Pfeiffer et al., EACL 2021, arXiv:2005.00247",
    ),
    Method(
        "alter", "adapt", "polytask.adapt.alter:ALTER",
        "every task mixes the adapters of all tasks, trained before, by a gate of its own",
        "Xie et al. 2023, arXiv:2309.11042",
    ),
    Method(
        "hyperformer", "adapt", "polytask.adapt.hyperformer:HyperFormer",
        "one network makes every task's and layer's adapter from embeddings; ++ with plus=true",
        "Karimi Mahabadi et al., ACL 2021, arXiv:2106.04489",
    ),
    Method(
        "polyhistor", "adapt", "polytask.adapt.polyhistor:Polyhistor",
        "adapters from small factors around a matrix of the task; Lite with lite=true",
        "Liu et al., NeurIPS 2022, arXiv:2210.03265",
    ),
    Method(
        "mpt", "adapt", "polytask.adapt.mpt:MPT",
        "a prompt shared by all tasks, times a matrix of rank one for each",
        "Wang et al., ICLR 2023, arXiv:2303.02861",
    ),
    Method(
        "spt", "adapt", "polytask.adapt.spt:SPT",
        "prompts retrieved from a memory bank by a task's discrete prompt",
        "Bari et al. 2022, arXiv:2212.10929",
    ),
    Method(
        "incremental-rank", "adapt", "polytask.adapt.incremental:IncrementalRank",
        "a new task adds a factor of rank one and rescales the frozen ones before it",
        "Hyder et al., ECCV 2022, arXiv:2207.09074",
    ),
    Method(
        "sparse-tuning", "adapt", "polytask.adapt.sparse:SparseTuning",
        "trains the base's few numbers that move farthest; changes of tasks add up",
        "Ansell et al., ACL 2022, arXiv:2110.07560",
    ),
    Method(
        "half-fine-tuning", "adapt", "polytask.adapt.half:HalfFineTuning",
        "each stage trains a random half of the base's layers",
        "Hui et al. 2024, arXiv:2404.18466",
    ),
    Method(
        "subtuning", "adapt", "polytask.adapt.subtuning:SubTuning",
        "a greedy choice of the blocks to tune; tasks share the rest in inference",
        "Kaplun et al. 2023, arXiv:2302.06354",
    ),
    Method(
        "tag", "relate", "polytask.relate.tag:TAG",
        "watches training: how far a step on one task lowers each other task's loss",
        "Fifty et al., NeurIPS 2021, arXiv:2109.04617",
    ),
    Method(
        "gradient-cosine", "relate", "polytask.relate.gradient_cosine:GradientCosine",
        "watches training: whether the tasks' gradients agree",
        "Du et al. 2018, arXiv:1812.02224",
    ),
    Method(
        "transfer", "relate", "polytask.relate.transfer:transfer",
        "the expensive truth: train on one task, then on another, for every pair",
        "Zamir et al., CVPR 2018, arXiv:1804.08328",
    ),
    Method(
        "cka", "relate", "polytask.relate.cka:cka",
        "whether models see the same inputs alike, whatever turns their features",
        "Kornblith et al., ICML 2019, arXiv:1905.00414",
    ),
    Method(
        "rsa", "relate", "polytask.relate.rsa:rsa",
        "whether models find the same pairs of inputs alike",
        "Dwivedi & Roig, CVPR 2019, arXiv:1904.11740",
    ),
    Method(
        "attributions", "relate", "polytask.relate.attributions:attributions",
        "whether models look at the same parts of an input",
        "Song et al., NeurIPS 2019, arXiv:1909.11902",
    ),
    Method(
        "data-maps", "relate", "polytask.relate.data_maps:DataMaps",
        "watches training: which rows a task finds easy, hard or ambiguous",
        "Swayamdipta et al., EMNLP 2020, arXiv:2009.10795",
    ),
    Method(
        "task-vectors", "relate", "polytask.relate.task_vectors:task_vectors",
        "whether tuning moves a model in the same direction",
        "Ilharco et al., ICLR 2023, arXiv:2212.04089",
    ),
    Method(
        "label-correlation", "relate", "polytask.relate.label_correlation:label_correlation",
        "whether labels go together on rows that have both",
        "the cheapest evidence, before any training; no source",
    ),
    Method(
        "hoa", "relate", "polytask.relate.hoa:hoa",
        "the gain of any group, as the mean over its pairs",
        "Standley et al., ICML 2020, arXiv:1905.07553",
    ),
    Method(
        "mtg-net", "relate", "polytask.relate.mtg_net:MTGNet",
        "the gain of any group, learned from some that were measured",
        "Song et al., NeurIPS 2022",
    ),
    Method(
        "exact-groups", "relate", "polytask.relate.exact:exact",
        "the best groups within a budget of models, proven, for up to 16 tasks",
        "Fifty et al., NeurIPS 2021, arXiv:2109.04617",
    ),
    Method(
        "greedy-groups", "relate", "polytask.relate.greedy:greedy",
        "good groups for many tasks: join, then move",
        "after Fifty et al., NeurIPS 2021, arXiv:2109.04617",
    ),
    Method(
        "stg-mtl", "relate", "polytask.relate.stg_mtl:stg_mtl",
        "groups of like data maps, with soft membership as loss weights",
        "Sherif et al. 2023, arXiv:2307.03374",
    ),
    Method(
        "ant-intervals", "relate", "polytask.relate.ant:ant",
        "tasks that have an order, split into intervals",
        "Go et al., NeurIPS 2023, arXiv:2306.00354",
    ),
    Method(
        "mas", "relate", "polytask.relate.mas:mas",
        "a split without overlap, to go on from a model trained on all",
        "Zhuang et al., ICCV 2023, arXiv:2307.11285",
    ),
    Method(
        "lasso-relevance", "relate", "polytask.relate.lasso_relevance:lasso_relevance",
        "the few sources whose heads make up the target's",
        "Wang et al., ICML 2023, arXiv:2306.02556",
    ),
    Method(
        "ridge-relevance", "relate", "polytask.relate.ridge_relevance:ridge_relevance",
        "how much of the target's head each source's is",
        "Chen et al., ICML 2022, arXiv:2202.00911",
    ),
    Method(
        "active-sources", "relate", "polytask.relate.active_sources:active_sources",
        "rounds of sampling sources by their relevance to a target",
        "Chen et al., ICML 2022, arXiv:2202.00911",
    ),
    Method(
        "consistency-diversity", "relate", "polytask.relate.consistency:consistency_diversity",
        "sources that point as the target does, until they cover it",
        "Xu et al., ICLR 2024, arXiv:2402.15017",
    ),
    Method(
        "bento", "relate", "polytask.relate.bento:bento",
        "the few tasks of a collection that stand for all",
        "Zhao et al., ICLR 2025, arXiv:2410.13804",
    ),
    Method(
        "uncertain", "relate", "polytask.relate.uncertain:uncertain",
        "labels next: rows a task is unsure of (entropy, margin, least confidence)",
        "Settles 2009, UW-Madison TR 1648",
    ),
    Method(
        "bald", "relate", "polytask.relate.bald:bald",
        "labels next: rows on which an ensemble disagrees",
        "Houlsby et al. 2011, arXiv:1112.5745",
    ),
    Method(
        "expected-gradient-length", "relate",
        "polytask.relate.gradient_length:expected_gradient_length",
        "labels next: rows that would change a head most",
        "Settles, Craven & Ray, NeurIPS 2007",
    ),
    Method(
        "core-set", "relate", "polytask.relate.core_set:core_set",
        "labels next: rows far from all labelled ones, for all tasks at once",
        "Sener & Savarese, ICLR 2018, arXiv:1708.00489",
    ),
    Method(
        "inconsistency", "relate", "polytask.relate.inconsistency:inconsistency",
        "labels next: rows on which tasks contradict each other",
        "Zamir et al., CVPR 2020, arXiv:2006.04096",
    ),
    Method(
        "rank-combination", "relate", "polytask.relate.rank_combination:rank_combination",
        "labels next: rows high in all tasks' lists, within a budget",
        "Reichart et al., ACL 2008, P08-1098",
    ),
    Method(
        "alternating-selection", "relate",
        "polytask.relate.alternating_selection:alternating_selection",
        "labels next: tasks take turns in choosing rows",
        "Reichart et al., ACL 2008, P08-1098",
    ),
    Method(
        "best-labels", "relate", "polytask.relate.best_labels:best_labels",
        "labels next: single labels by score per cost",
        "Settles, Craven & Friedland, NeurIPS workshop 2008",
    ),
)  # fmt: skip


def method(name: str) -> Method:
    """Return the row called `name`, or raise with the nearest name."""
    for row in METHODS:
        if row.name == name:
            return row
    raise unknown("method", name, [row.name for row in METHODS], "See `polytask methods`.")
