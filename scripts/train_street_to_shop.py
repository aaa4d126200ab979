"""Trains a street-to-shop model, step by step: what `tf-fashion train street_to_shop` does, as a program to read and change.

python scripts/train_street_to_shop.py --data runs/wardrobe-street_to_shop --out runs/mine
"""

import argparse
import sys

from tf_fashion.cli import add_street_arguments, run_and_explain, street_config
from tf_fashion.core.quiet import import_tensorflow_quietly


def train(args: argparse.Namespace) -> int:
    """Data, model, `fit`, results."""
    import_tensorflow_quietly()
    from tf_fashion.training.street import StreetRun

    run = StreetRun(street_config(args))
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
    add_street_arguments(parser)
    sys.exit(run_and_explain(train, parser.parse_args()))
