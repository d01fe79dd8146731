"""The table of flags that every run knows; a method's own flags are its Config fields (helper.options.parse)."""

from __future__ import annotations

from core.option import Flag, _switch
from dataset.clips.video import DATA
from helper.machine.distributed import LAUNCH

# settings of the optimiser and the start
RECIPE = (
    Flag(
        ("--param_groups",),
        "one",
        "tsm: biases at twice the rate, no decay on biases and batch norm; tsm_fc5: also the classifier at five times",
        choices=("one", "tsm", "tsm_fc5"),
        result=True,
    ),
    Flag(
        ("--pretrained",),
        None,
        "weights to start from, all but the classifier: a checkpoint of a known layout, or torchvision's, imagenet for "
        "IMAGENET1K_V1 and others by name, as imagenet:IMAGENET1K_V2",
        result=True,
    ),
)


VIDEO = (*DATA, *RECIPE)


STUDENT_VIDEO = (
    _switch(
        ("--frame_logits",), "compare the scores of every frame, not of the clip, in every logit loss", result=True
    ),
    _switch(
        ("--teacher_dropout",),
        "leave the teacher's dropout and drop path on, as MMRazor does (its batch norm is off)",
        result=True,
    ),
)


COMMON = (
    Flag(("--dataset",), "cifar100", "data set, see --list", result=True, named=True),
    Flag(("--data_folder",), "../data/", "where data sets lie"),
    Flag(("--plugin",), None, "Python files that define further methods or models", nargs="+"),
    Flag(
        ("--image_size",),
        None,
        "side of the images (default: 224 of imagenet and of clips, else 32)",
        int,
        result=True,
    ),
    Flag(("--data_split",), None, "published split of action recordings (default: cross_subject)", result=True),
    Flag(
        ("--num_segments",),
        8,
        "frames of a clip that a network sees; of a list of videos, a clip with fewer shows some twice",
        int,
        result=True,
    ),
    Flag(("--window",), None, "samples of a sensor window (default 224)", int, result=True),
    Flag(("--clip_cache",), "./cache/clips", "folder for decoded frames of videos"),
    Flag(("--val_fraction",), 0.0, "hold out this share of train, stratified, and evaluate on it", float, result=True),
    Flag(("--few_ratio",), 1.0, "train on this share of every class", float, result=True),
    Flag(("--batch_size",), 64, "global batch size (default 64; by data set)", int, result=True),
    Flag(("--epochs",), 240, "epochs to train (default 240; by data set)", int, result=True),
    Flag(
        ("--learning_rate", "--lr"),
        0.05,
        "initial learning rate (default 0.05; by data set, and 0.01 for mobile and shuffle nets)",
        float,
        result=True,
    ),
    Flag(
        ("--lr_decay_epochs",),
        "150,180,210",
        "epochs after which the rate is multiplied by --lr_decay_rate (default 150,180,210; by data set)",
        result=True,
    ),
    Flag(("--lr_decay_rate",), 0.1, "factor of each decay", float, result=True),
    Flag(("--schedule",), "step", "of the learning rate", choices=("step", "cosine"), result=True),
    Flag(("--lr_min",), 0.0, "what a cosine ends at", float, result=True),
    Flag(("--warmup_epochs",), 0, "epochs of linear warm-up", int, result=True),
    Flag(("--warmup_start",), 0.01, "share of the learning rate a warm-up starts with", float, result=True),
    Flag(
        ("--optimizer",),
        "sgd",
        "of everything that trains",
        choices=("sgd", "nesterov", "adam", "adamw", "rmsprop"),
        result=True,
    ),
    Flag(
        ("--norm_weight_decay",),
        None,
        "weight decay of normalisation layers and biases (default: that of all)",
        float,
        result=True,
    ),
    Flag(("--clip_grad",), 0.0, "largest norm of a gradient; 0: no limit", float, result=True),
    Flag(("--ema",), 0.0, "decay of a moving average, evaluated and saved in place of the weights", float, result=True),
    Flag(("--ema_every",), 1, "steps between updates of the average", int, result=True),
    Flag(("--label_smoothing",), 0.0, "share of a label spread over all classes", float, result=True),
    Flag(("--mixup",), 0.0, "alpha of MixUp", float, result=True),
    Flag(("--cutmix",), 0.0, "alpha of CutMix; with --mixup, each batch draws one of them", float, result=True),
    Flag(
        ("--weight_decay",),
        5e-4,
        "on all parameters, batch norm and biases included (default 0.0005; by data set)",
        float,
        result=True,
    ),
    Flag(("--momentum",), 0.9, "of SGD", float, result=True),
    _switch(("--nesterov",), "short for --optimizer nesterov, as HSAKD and DPCD train on CIFAR", result=True),
    Flag(("--accumulate",), 1, "micro-batches per optimiser step", int, result=True),
    Flag(("--trials",), 1, "repetitions, one after the other, counting on from --trial", int),
    Flag(("--trial", "-t"), "0", "name of this repetition", result=True, named=True),
    Flag(
        ("--seed", "--manual_seed"),
        None,
        "random seed (default: the trial number, or crc32 of a word)",
        int,
        result=True,
    ),
    Flag(
        ("--precision",),
        "auto",
        "forward pass in bf16 or fp32; auto: bf16 where the hardware has it natively",
        choices=("auto", "bf16", "fp32"),
        result=True,
    ),
    Flag(
        ("--eval_precision",),
        "auto",
        "forward pass of each epoch's evaluation: fp32; train, the precision of training; auto: that of training, and "
        "float32 after the last epoch, which is what tables report",
        choices=("auto", "fp32", "train"),
        result=True,
    ),
    Flag(
        ("--compile",),
        "auto",
        "torch.compile mode; auto: default in long runs on CUDA, none elsewhere (see docs/speed.md)",
        choices=("auto", "none", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    ),
    Flag(
        ("--compile_parts",),
        None,
        "what is compiled (default: all on CUDA, the teacher on a CPU)",
        choices=("student", "teacher", "loss"),
        nargs="+",
    ),
    Flag(("--channels_last",), "auto", "memory order of images and weights; auto: on", choices=("auto", "on", "off")),
    Flag(("--fused_optimizer",), "auto", "SGD as one kernel; auto: on", choices=("auto", "on", "off")),
    _switch(("--deterministic",), "deterministic kernels; an error where an operation has none", result=True),
    Flag(("--max_steps",), None, "stop every epoch after this many steps (for trying things out)", int, result=True),
    _switch(("--dry_run",), "parse, build, train one batch, and write nothing"),
    Flag(("--gpu_id",), "0", "GPU to use, or one per process; without CUDA, a number means a process on the CPU"),
    Flag(
        ("--num_workers",),
        8,
        "loader processes (threads of DALI) per machine, for data that is not resident",
        int,
    ),
    Flag(("--print_freq",), 200, "steps between progress lines in the log", int),
    Flag(("--save_root",), "./save", "root of runs and teachers"),
    Flag(("--resume",), "auto", "auto: continue what is there; or the path of a _last.pth"),
    _switch(("--overwrite",), "delete a run of this name first"),
    Flag(
        ("--tb_backend",), "tensorboard", "writer of event files", choices=("tensorboard", "tensorboard_logger", "none")
    ),
    Flag(("--classes_subset",), None, "of ImageNet: this many classes, or these names (a,b,c)", result=True),
    _switch(
        ("--skip_corrupt", "--skip_bad"),
        "leave out and count what cannot be read (images, videos, recordings, and these without their twin)",
    ),
    Flag(
        ("--augment",),
        "none",
        "beside crop and flip, where images are decoded as they are read",
        choices=("none", "randaugment", "trivialaugment", "autoaugment"),
        result=True,
    ),
    Flag(("--random_erase",), 0.0, "probability of a blank rectangle in a training image", float, result=True),
    Flag(("--repeated_augmentation",), 1, "copies of each drawn sample in an epoch", int, result=True),
    Flag(
        ("--dali",),
        None,
        "decode training images with DALI on the cpu or the gpu",
        choices=("cpu", "gpu"),
        result=True,
        named=True,
    ),
    *LAUNCH,
    _switch(("--sync_bn",), "batch-norm statistics over all processes (CUDA only)", result=True),
    _switch(("--log_all_ranks",), "a log file per process, log_rank1.txt and so on"),
    _switch(("--use_lmdb",), "accepted for old scripts"),
    Flag(("--tb_freq",), None, "accepted for old scripts", int),
    Flag(("--save_freq",), None, "accepted for old scripts", int),
)


TEACHER = (
    Flag(("--model",), "resnet32x4", "network to train, see --list", result=True, named=True),
    Flag(("--modality",), None, "what the network reads of action recordings, as video or accel", result=True),
    Flag(("--distill",), "vanilla", "a method that needs no teacher, see --list", result=True, named=True),
    Flag(
        ("--pretrained_backbone",),
        None,
        "start from these weights: a checkpoint, or torchvision:NAME; auxiliary heads start fresh",
        result=True,
        named=True,
    ),
)


STUDENT = (
    Flag(
        ("--model_s",),
        "resnet8x4",
        "student network, see --list; several, as resnet8,vgg8, are trained together",
        result=True,
        named=True,
    ),
    Flag(("--modality_s",), None, "what the student reads of action recordings, as accel", result=True),
    Flag(("--modality_t",), None, "what the teacher reads of them, as video", result=True),
    Flag(
        ("--path_t", "--teacher"),
        None,
        "checkpoint of the teacher, or torchvision:NAME, timm:NAME for published weights; several make an ensemble",
        nargs="+",
    ),
    Flag(
        ("--teacher_weight",),
        None,
        "weight of each teacher's probabilities in an ensemble (default: equal)",
        float,
        result=True,
        nargs="+",
    ),
    Flag(
        ("--weight",),
        None,
        "weights of terms by name in a combination, as crd=0.8 at=500 (default: the methods')",
        result=True,
        nargs="+",
    ),
    Flag(("--model_t",), None, "teacher network, where neither the checkpoint nor its path tells"),
    Flag(
        ("--distill",),
        "kd",
        "method, see --list; kd+crd joins losses, kd,crd trains two students together",
        result=True,
        named=True,
    ),
    Flag(
        ("--cls", "-c", "-r", "--gamma"),
        1.0,
        "weight of cross-entropy (default: the method's)",
        float,
        result=True,
        named=True,
    ),
    Flag(
        ("--div", "-d", "-a", "--alpha"),
        1.0,
        "weight of the logit KL (default: the method's)",
        float,
        result=True,
        named=True,
    ),
    Flag(
        ("--beta", "-b"), 0.0, "weight of the method's own term (default: the method's)", float, result=True, named=True
    ),
    Flag(("--kd_T",), 4.0, "temperature of the logit KL", float, result=True),
    _switch(
        ("--logit_stand",),
        "compare z-scored logits in every logit loss (LSKD; published beside kd with -c 0.1 -d 9 --kd_T 2)",
        result=True,
    ),
    _switch(
        ("--norm_kd",),
        "temperatures of logit losses are multiples of each row's standard deviation (NormKD; published with kd, "
        "-c 0.1 -d 0.9 --kd_T 2)",
        result=True,
    ),
    _switch(
        ("--ea_weight",),
        "weigh each sample of a logit loss by the entropies of teacher and student (EA-KD; published with kd, "
        "-c 0.1 -d 0.9)",
        result=True,
    ),
    Flag(("--ea_T",), 3.0, "temperature of the entropies of --ea_weight; published 2 on ImageNet", float, result=True),
    _switch(
        ("--ea_as_published",),
        "bound the student's entropy in --ea_weight by the number of classes, as the code for kd and dkd on CIFAR-100 "
        "does, not by its logarithm",
        result=True,
    ),
    Flag(
        ("--protocol",),
        "simkd",
        "which weights hold unless given: simkd keeps cross-entropy and KL beside every method, authors takes each "
        "publication's own",
        choices=("simkd", "authors"),
        result=True,
    ),
    _switch(("--skip_validation",), "do not evaluate the teacher first"),
    _switch(("--fold_teacher",), "fold the teacher's batch norm into its convolutions", result=True),
    Flag(("--teacher_cache",), None, "folder that keeps the teacher's logits of every view, for every later run"),
    _switch(("--cache_pooled",), "keep its pooled features too, for methods that read nothing deeper"),
    Flag(
        ("--cache_device",),
        "auto",
        "read the cache from disk (mapped into memory) or the GPU; auto: the GPU if half of its free memory holds it",
        choices=("auto", "disk", "gpu"),
    ),
    _switch(("--rebuild_cache",), "replace what --teacher_cache holds"),
    Flag(("--init_epochs",), 30, "epochs of the first stage, for methods that have one", int, result=True),
)


# flags that do nothing unless the run is of the kind they are for
WITHOUT_EFFECT = ("use_lmdb", "tb_freq", "save_freq")
