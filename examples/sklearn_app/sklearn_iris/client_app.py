"""What a client does with the global model: fit it for some iterations."""

import warnings

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss

from sklearn_iris.task import create_model, get_arrays, load_partition, set_arrays

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Go on from the global model on the client's own irises, and return the arrays."""
    node = context.node_config
    features, labels = load_partition(node["partition-id"], node["num-partitions"])
    model = create_model(context.run_config["local-iterations"])
    set_arrays(model, msg.content["arrays"].to_numpy_ndarrays())
    with warnings.catch_warnings():  # few iterations are meant to end before convergence
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)
    loss = log_loss(labels, model.predict_proba(features))
    metrics = MetricRecord({"train_logloss": loss, "num-examples": len(labels)})
    content = RecordDict({"arrays": ArrayRecord(get_arrays(model)), "metrics": metrics})
    return Message(content=content, reply_to=msg)
