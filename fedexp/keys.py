"""The keys of what clients and server send each other.

The code that writes and reads records has them from here alone; the files of a run use the same
words.
Flower's records name their entries by text. A key that one side writes and the other reads has one
home, so that a slip is an error at import and not a value that is silently missing.
"""

# Metrics of a client's reply, and of the clients' settings.
NUM_EXAMPLES = "num-examples"
TRAIN_LOSS = "train-loss"
FINAL_LOSS = "final-loss"
"""Metric: the client's loss at what it returns. Setting: whether rules need it."""
LEARNING_RATE = "learning-rate"
"""Setting: the learning rate that a round starts at. Metric: the one that the client ended at."""
SERVER_ROUND = "server-round"
RUN_ID = "run-id"
"""Setting by which clients tell one run from another."""

# Which client a node is.
PARTITION_ID = "partition-id"
NUM_PARTITIONS = "num-partitions"

BUFFERS = "fedexp-buffers"
"""Record of a reply: names of its floating-point arrays that are no parameters."""

# Privacy.
PRIVACY_EPSILON = "privacy-epsilon"
PRIVACY_DELTA = "privacy-delta"
"""Metrics of a round: what all rounds so far cost a client."""
LOCAL_NOISE = "local-noise"
"""Setting: the noise that clients are to add to their update. Metric: that they have."""
LOCAL_CLIP = "local-clip"
LOCAL_SEED = "local-noise-seed"
"""Settings: the bound on an update before that, and what fixes the noise, if anything."""

# Algorithms that are extensions.
LOCAL_WORK = "local-work"
"""Metric: ``‖aᵢ‖₁``, the local steps of FedNova's client. Setting: whether the server needs it."""
EFFECTIVE_WORK = "effective-local-work"
"""Metric of a round: ``τ = Σ pᵢ‖aᵢ‖₁``, with ``Σ pᵢ = 1``."""
DYNAMIC_ALPHA = "dynamic-alpha"
"""Setting: ``α`` of FedDyn, whose clients keep ``λᵢ`` where SCAFFOLD's keep ``cᵢ``."""

PRIVATE_LAYERS = "private-layers"
"""Setting: patterns of the names of arrays that every client has of its own."""

# SCAFFOLD.
CONTROL_VARIATE = "control-variate"
"""Record: the server's control variate in a message, the client's own in ``Context.state``."""
CONTROL_STEP = "control-step"
"""Metric by which a client says that it used its control variates: ``K η_l``, or ``Σ η_t``.

Of FedDyn's clients ``1/α``: what divides an update in the change of what they keep.
"""
CONTROL_NODES = "control-nodes"
CONTROL_ROUNDS = "control-rounds"
"""Settings: nodes of which a reply was not applied since, and the last round that was (0: none)."""
MAX_UPDATE_NORM = "max-update-norm"
MAX_WEIGHT = "max-weight"
"""Settings: the bounds ``C`` and ``P`` to which the server bounds a client's update and weight."""

# Secure aggregation.
SECURE_NORM_SCALE = "secure-norm-scale"
SECURE_NORM_ARRAYS = "secure-norm-arrays"
"""Settings: what divides the squared norm of an update, and the numbers of arrays that count."""
MEAN_SQ_NORM = "mean-squared-update-norm"
"""Metric: ``Σ pᵢ‖Δᵢ‖²/Σ pᵢ``, which the server knows from under the mask."""

# Learning rates that clients tune.
BETWEEN_ROUNDS = "hyper-between-rounds"
"""Setting: ``fresh``, ``carry`` (kept in ``Context.state``) or ``average`` (the server's mean)."""
MEAN_LEARNING_RATE = "mean-learning-rate"
"""Setting that brings the cohort's mean back to the clients."""

# Step sizes that clients learn.
LEARNED_STEP_SIZE = "learned-step-size"
"""Metric: the step size that a client found. Setting, and metric of a round: the cohort's mean."""
LEARNED_STEP_SIZE_SPREAD = "learned-step-size-spread"
"""Metric of a round in which clients tuned: the standard deviation of the logarithms."""
TUNING_FAILED = "step-size-tuning-failed"
"""Metric: 1 of a client that found no step size in its meta-steps; the share of them in a round."""

# Clients that train under differential privacy.
EPSILON_SPENT = "epsilon-spent"
"""Metric: what the client has spent since the first round; the cohort's mean in a round."""
LARGEST_EPSILON_SPENT = "largest-epsilon-spent"
"""Metric of a round: the largest of them in the cohort."""
PRIVATE_STEPS = "private-steps"
"""Metric: the steps that it has taken since the first round."""
BUDGET_LEFT = "budget-left"
"""Metric: the share of its budget that is left."""
BUDGET_IS_SPENT = "budget-is-spent"
"""Metric: 1 of a client whose budget is spent, so that it does not train any more."""

# What the server reports of a round.
NUM_CLIENTS = "num-clients"
NUM_FAILURES = "num-failures"
NUM_LATE = "num-late"
"""Metric: nodes that were asked and had not replied when the round ended; absent if none."""
SERVER_STEP_SIZE = "server-step-size"
UPDATE_NORM = "update-norm"
MEAN_UPDATE_NORM = "mean-update-norm"
NUM_CLIPPED = "num-clipped"
LEARNING_RATE_STD = "learning-rate-std"
