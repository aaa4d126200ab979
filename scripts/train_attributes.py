"""Trains an attribute classifier, step by step: what `tf-fashion train attributes` does, as a program to read and change.

python scripts/train_attributes.py --data runs/wardrobe-imaterialist --out runs/mine
"""

import argparse
import sys

from tf_fashion.cli import add_attribute_arguments, attribute_config, run_and_explain
from tf_fashion.core.quiet import import_tensorflow_quietly


def train(args: argparse.Namespace) -> int:
    """Data, model, `fit`, results."""
    import_tensorflow_quietly()
    from tf_fashion.training.attributes import AttributeRun

    run = AttributeRun(attribute_config(args))
    run.load_pictures()
    model = run.build_model()
    state = run.prepare_state()
    if state.epochs_left:
        model.fit(
            run.training_data(state.initial_epoch),
            initial_epoch=state.initial_epoch,
            epochs=run.config.epochs,
            steps_per_epoch=run.steps,
            callbacks=run.callbacks(),
            verbose=run.verbosity,
            shuffle=False,
        )
    run.finish()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_attribute_arguments(parser)
    sys.exit(run_and_explain(train, parser.parse_args()))
