"""Verbs of image-text retrieval: train, evaluate, predict, concepts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tf_fashion.cli.options import Option, add_backbone, add_batches, add_devices, add_files, add_optimizer, call, config_of, verb
from tf_fashion.core.quiet import import_tensorflow_quietly


def add_pair_data(add: Any) -> None:
    """Where pictures and their texts come from, for verbs that can do without."""
    add("--data", metavar="DIR", help="folder in FashionGen's layout, or a shop's folder with a CSV file of descriptions")
    add("--images", metavar="DIR", help="folder of pictures or .npz file of arrays; with --data: if they are not there")
    add("--dataset", default="auto", help="how DATA is read: fashion_gen, text_catalogue; auto looks at its files")
    add(
        "--data-option",
        dest="data_options",
        action=Option,
        metavar="NAME=VALUE",
        help="argument of the dataset's class, as in `train dual`; repeatable",
    )


def add_dual_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of `train dual`."""
    add = parser.add_argument
    add(
        "--data", required=True, metavar="DIR", help="folder in FashionGen's layout, or a shop's folder with a CSV file of descriptions"
    )
    add("--images", metavar="DIR", help="folder of the pictures or .npz file, if they are not in DATA")
    add("--dataset", default="auto", help="how DATA is read: fashion_gen, text_catalogue; auto looks at its files")
    add(
        "--data-option",
        dest="data_options",
        action=Option,
        default={},
        metavar="NAME=VALUE",
        help="argument of the dataset's class (FashionGen: train, val, concepts, fathers, kb_concepts, concept_images, skip_bad_lines, "
        "...; catalogue: csv, text_column, val_share); repeatable",
    )
    add("--groups", metavar="CSV[:COLUMN]", help="what each picture shows, for the protocol `sample` (default: what DATA says)")
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for everything the run leaves; the same command continues an interrupted run",
    )
    group = parser.add_argument_group("model")
    add = group.add_argument
    add(
        "--preset",
        default="auto",
        help="where options that are not given come from: frozen (pretrained backbone, features cached; fast on a CPU), scratch (a "
        "small network without pretrained weights), tiny_clip (a small CLIP without them), finetune (a published CLIP trained along; "
        "for GPUs), fashion_klip and fashion_klip_original (the released FashionKLIP, without and with its mistakes), siglip; "
        "`tf-fashion list presets` shows them; auto goes by --weights and --freeze-backbone",
    )
    add("--clip", help="both towers are CLIP's, of these sizes: tiny, ViT-B/32, ViT-B/16, ViT-L/14, or a configuration file (.json)")
    add(
        "--bpe",
        metavar="FILE",
        help="CLIP's vocabulary (bpe_simple_vocab_16e6.txt.gz); without one, byte pairs are learned from the training texts",
    )
    add("--bpe-size", type=int, help="tokens of a learned vocabulary (default 4096)")
    add("--context-length", type=int, help="longest text in tokens (default: the configuration's)")
    add_backbone(group)
    add("--text-encoder", help="gru, lstm, lstm_gru, bigru, bilstm, swem, or clip (of the sizes of --clip)")
    add(
        "--text-option",
        dest="text_options",
        action=Option,
        metavar="NAME=VALUE",
        help="argument of the text encoder's class, VALUE as JSON or plain text; repeatable",
    )
    add("--dim", type=int, help="width of the embeddings (with --clip: the configuration's)")
    add("--word-dim", type=int, help="width of the word vectors")
    add("--text-units", type=int, help="width of recurrent text layers (default: DIM)")
    add("--text-dropout", type=float, help="share of text features dropped in training")
    add("--tokens", help="how texts become words: strip_punct (default) or treebank (punctuation marks are words)")
    add("--projection", help="from image features to embeddings: linear, mlp or none")
    add("--feature-norm", action="store_true", default=None, help="batch normalisation before the projection")
    add("--feature-dropout", type=float, help="share of image features dropped in training")
    add("--init-from", metavar="FILE", help="model.keras of another run with the same options: training begins with its weights")
    group = parser.add_argument_group("objective")
    add = group.add_argument
    add(
        "--loss",
        help="batch_classification (default: CLIP's, both directions), chunked_infonce (the same with little memory), or sigmoid "
        "(SigLIP's)",
    )
    add(
        "--loss-option",
        dest="loss_options",
        action=Option,
        metavar="NAME=VALUE",
        help="argument of the loss' class, VALUE as JSON or plain text; repeatable",
    )
    add(
        "--same-pairs",
        help="pairs that belong together and are no negatives: phrases (default: same picture, same text, or same set of phrases), "
        "text (same picture or text), none (as the originals)",
    )
    add("--scale", type=float, help="start of the factor of the cosines, exp(logit scale) (default 1/0.07)")
    add("--bias", type=float, help="start of the sigmoid loss' bias (SigLIP: -10)")
    add(
        "--concept-loss",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="FashionKLIP's concept-visual alignment: concepts of a text against pictures that stand for them",
    )
    add(
        "--concept-option",
        dest="concept_options",
        action=Option,
        metavar="NAME=VALUE",
        help="argument of the concept loss: top, keep_negative, mask_same_concept, original_padding, original_transposed, chunk_size",
    )
    add("--concept-weighting", help="adaptive (default: a fifth of the contrastive loss), original (the same, not clipped) or fixed")
    add("--concept-weight", type=float, help="factor of the concept loss under --concept-weighting fixed")
    add("--concept-start", type=int, metavar="EPOCHS", help="epochs with the contrastive loss alone (the original's finetune-only: 10)")
    add("--concept-slots", type=int, help="concepts per text (default 5)")
    add("--concept-sources", help="data (default) or data+kb: concepts of the knowledge base in further slots")
    add("--concept-candidates", type=int, metavar="N", help="nearest pictures that a concept's prototypes are chosen from (20)")
    add("--concept-prototypes", type=int, metavar="N", help="prototypes of a concept (10)")
    add("--concept-diversity", type=float, help="weight of diversity in that choice (0.8)")
    for name, what in (
        ("original-selection", "add fathers of concepts only if all of them fit, grandfathers never, as in the released FashionKLIP"),
        ("swap-father-maps", "take the fathers of each vocabulary's concepts from the other one, as in the released FashionKLIP"),
        ("original-truncation", "cut long texts without an end token, as in the released FashionKLIP (all get one embedding)"),
    ):
        add(f"--{name}", action="store_true", default=None, help=what)
    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--optimizer", help="adamw (default) or adam")
    add("--schedule", help="of the learning rate: cosine (default), constant, or step (a tenth after half the steps)")
    add_optimizer(group)
    add("--epochs", type=int)
    add("--batch-size", type=int, help="pairs per step, over all replicas")
    add(
        "--global-batch",
        type=int,
        metavar="N",
        help="pairs per step, of which --batch-size go through the towers at a time: the gradient is that of N pairs, the memory that "
        "of --batch-size (gradient caching)",
    )
    add_batches(group)
    add_devices(group)
    group = parser.add_argument_group("evaluation and files")
    group.add_argument(
        "--protocol", help="full (default), sample (1 right and 99 wrong ones of the same sub-category), sample-101, subset-1k"
    )
    add_files(group)


def dual_config(args: argparse.Namespace) -> Any:
    """The `DualConfig` of parsed arguments."""
    from tf_fashion.training.dual_config import DualConfig

    return config_of(DualConfig, args)


def add_train(train: Any) -> None:
    """`train dual`."""
    dual = verb(
        train,
        "dual",
        "text <-> photo",
        "Trains a dual encoder: texts find photos and photos find texts (CLIP, FashionKLIP, or any image and text encoder).\n"
        "Writes to --out: model.keras, export/ (SavedModel), metrics.json, history.csv, sheet.png, report.html\n\n"
        "  tf-fashion train dual --data wardrobe-fashion_gen --out runs/first\n"
        "  tf-fashion train dual --data fashion_gen --images photos --weights imagenet --freeze-backbone --concept-loss --out runs/2\n"
        "  tf-fashion train dual --data fashion_gen --preset fashion_klip --weights ViT-B-32.pt --bpe bpe_simple_vocab_16e6.txt.gz "
        "--out runs/klip",
    )
    add_dual_arguments(dual)
    dual.set_defaults(run=_train_dual)


def add_evaluate(evaluate: Any) -> None:
    """`evaluate dual`."""
    dual = verb(
        evaluate,
        "dual",
        "photo <-> text",
        "Measures image-text retrieval in both directions under a named protocol and writes the numbers with it: either a model on a\n"
        "dataset, or features in files (.jsonl of FashionKLIP, .npz, an index) on a dataset or against files of right answers.\n\n"
        "  tf-fashion evaluate dual --model runs/a/model.keras --data fashion_gen --out runs/a/full.json\n"
        "  tf-fashion evaluate dual --model runs/a/model.keras --data fashion_gen --protocol sample \\\n"
        "    --groups styles.csv:subCategory --out runs/a/sample.json\n"
        "  tf-fashion evaluate dual --image-features val.img_feat.jsonl --text-features val.txt_feat.jsonl \\\n"
        "    --text-truth fashion-gen_val_queries.jsonl --image-truth fashion-gen_val_images.jsonl --out full.json",
    )
    add = dual.add_argument
    add("--model", metavar="FILE", help="model.keras of `train dual`; needs --data")
    add("--image-features", "--image-feats", metavar="FILE", help="features of pictures, in place of a model")
    add("--text-features", "--text-feats", metavar="FILE", help="features of texts")
    add_pair_data(add)
    add("--split", help="split of DATA (default: val, or test where there is no val)")
    add("--text-truth", "--text-standard-path", metavar="FILE", help="JSON lines: query_id, item_ids (right pictures)")
    add(
        "--image-truth",
        "--image-standard-path",
        metavar="FILE",
        help="JSON lines: image_id, item_ids (right texts); without it they follow from --text-truth, and the other way round",
    )
    add("--groups", metavar="CSV[:COLUMN]", help="what each picture shows, for the protocol `sample` (default: what DATA says)")
    add("--protocol", default="full", help="full, sample, sample-101 or subset-1k; `tf-fashion list protocols` explains them")
    add(
        "--protocol-option",
        dest="protocol_options",
        action=Option,
        metavar="NAME=VALUE",
        help="change a field of the protocol: queries, negatives, group, fill, repeats, seed, subset, tie, ks; repeatable",
    )
    add("--metric", default="dot", choices=("dot", "cosine"), help="of features in files; a model's embeddings have length one")
    add("--precision", default="float64", choices=("float64", "float32"), help="float64 is the same on every machine, float32 faster")
    add("--out", required=True, metavar="FILE", help="where to write the JSON")
    add("--name", help="the result's name in tables (default: the file's)")
    add("--report", metavar="DIR", help="also write sheet.png and report.html there (with --data)")
    add("--skip-bad-images", action="store_true", help="leave out unusable pictures and declare the smaller gallery")
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    dual.set_defaults(run=_evaluate_dual)


def add_leaderboard(evaluate: Any) -> None:
    """`evaluate leaderboard`."""
    board = verb(
        evaluate,
        "leaderboard",
        "the tasks of Marqo's fashion leaderboard",
        "Text to image (Recall@1, Recall@10, their mean, MRR), category to product and sub-category to product (P@1, P@10, their\n"
        "mean, MRR) on a catalogue: a folder with pictures and a CSV file.\n\n"
        "  tf-fashion evaluate leaderboard --model runs/a/model.keras --catalogue shop --category masterCategory \\\n"
        "    --sub-category subCategory --out runs/a/leaderboard.json",
    )
    add = board.add_argument
    add("--model", required=True, metavar="FILE", help="model.keras of `train dual`")
    add("--catalogue", required=True, metavar="DIR", help="folder of the catalogue")
    add("--table", metavar="FILE", help="its CSV file, if there are several or it lies elsewhere")
    add("--images", metavar="DIR", help="folder of the pictures, if they are not in the catalogue")
    add("--text", metavar="COLUMN", help="column of descriptions (default: description, text, caption, title or name)")
    add("--category", default="category", metavar="COLUMN", help="column of categories")
    add("--sub-category", metavar="COLUMN", help="column of sub-categories (default: this task is left out)")
    add("--name", help="the model's name in tables (default: the file's)")
    add("--dataset-name", help="the data's name in tables (default: the folder's)")
    add("--out", required=True, metavar="FILE", help="where to write the JSON")
    add("--skip-bad-images", action="store_true", help="leave out unusable pictures")
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    board.set_defaults(run=_evaluate_leaderboard)


def add_predict(predict: Any) -> None:
    """`predict retrieval` and `predict zero-shot`."""
    retrieval = verb(
        predict,
        "retrieval",
        "the nearest pictures of every text, and the other way round",
        "Ranks all pictures for every text and all texts for every picture by the product of their features, and writes the best of\n"
        "them in FashionKLIP's format; with files of right answers also its score files (R@1, R@5, R@10, their mean). Into --out:\n"
        "  text_predictions.jsonl, image_predictions.jsonl, text_output.json, image_output.json\n"
        "Exit code 1 if a score file reports a failure (0 with --original-errors).\n\n"
        "  tf-fashion predict retrieval --image-features val.img_feat.jsonl --text-features val.txt_feat.jsonl \\\n"
        "    --text-truth fashion-gen_val_queries.jsonl --image-truth fashion-gen_val_images.jsonl --out predictions",
    )
    add = retrieval.add_argument
    add("--image-features", "--image-feats", required=True, metavar="FILE", help="features of pictures: .jsonl, .npz or an index")
    add("--text-features", "--text-feats", required=True, metavar="FILE", help="features of texts")
    add("--out", metavar="DIR", help="folder of the four files; each can go elsewhere:")
    add("--output-images", metavar="FILE", help="texts found for every picture")
    add("--output-texts", metavar="FILE", help="pictures found for every text")
    add("--image-truth", "--image-standard-path", metavar="FILE", help="JSON lines: image_id, item_ids (right texts)")
    add("--text-truth", "--text-standard-path", metavar="FILE", help="JSON lines: query_id, item_ids (right pictures)")
    add("--image-out-path", metavar="FILE", help="scores of picture queries (image to text)")
    add("--text-out-path", metavar="FILE", help="scores of text queries (text to image)")
    add("--top-k", type=int, default=10, metavar="K", help="how many to find; with fewer than 10, R@10 means R@K")
    add("--eval-batch-size", type=int, default=8192, metavar="N", help="gallery rows at a time; the result does not depend on it")
    add("--precision", default="float64", choices=("float64", "float32"), help="float64 is the same on every machine, float32 faster")
    add("--original-ids", action="store_true", help='15 and "15" are different ids, as in FashionKLIP\'s program')
    add(
        "--original-errors",
        action="store_true",
        help="score files as FashionKLIP's program writes them: strict types of ids, bare reasons of failures, no remarks",
    )
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    retrieval.set_defaults(run=_predict_retrieval)
    zero_shot = verb(
        predict,
        "zero-shot",
        "classes of pictures by the names of the classes",
        "Gives every picture the class whose name, said in several sentences, is nearest. Writes predictions.csv into --out, and with\n"
        "labels scores.json (accuracy, weighted and macro F1, each class, confusions).\n\n"
        "  tf-fashion predict zero-shot --model runs/a/model.keras --images photos --classes dress,shirt,shoe --out classes\n"
        "  tf-fashion predict zero-shot --model runs/a/model.keras --images photos --labels styles.csv:articleType --out classes",
    )
    add = zero_shot.add_argument
    add("--model", required=True, metavar="FILE", help="model.keras of `train dual`")
    add("--images", metavar="DIR", help="folder of photos, catalogue, or .npz file of arrays")
    add("--image-features", metavar="FILE", help="their features, in place of the photos")
    add("--classes", metavar="A,B,C", help="names of the classes, or a text file with one per line (default: those of --labels)")
    add("--labels", metavar="CSV[:COLUMN]", help="the right class of each picture, by id")
    add("--templates", metavar="FILE", help="sentences, one per line, with {} where the name goes (default: eight of our own)")
    add("--top", type=int, default=1, metavar="K", help="classes per picture")
    add("--out", required=True, metavar="DIR", help="folder for the results")
    add("--skip-bad-images", action="store_true", help="leave out unusable pictures (bad_images.csv lists them)")
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    zero_shot.set_defaults(run=_predict_zero_shot)


def add_concepts(verbs: Any) -> None:
    """`concepts mine`."""
    concepts = verb(verbs, "concepts", "phrases of captions as concepts", "Look after concepts.").add_subparsers(
        dest="what", metavar="WHAT", required=True
    )
    mine = verb(
        concepts,
        "mine",
        "find the concepts of one's own captions",
        "Finds noun phrases that occur often enough and what each is a kind of, and writes the files that FashionGen's layout has:\n"
        "texts with their phrases, concepts, fathers of concepts. It needs the extra `concepts`; an installed spaCy model is used.\n\n"
        "  tf-fashion concepts mine shop.csv --column description --out concepts\n"
        "  tf-fashion concepts mine fashion_gen --kb fashion_kb/icbu_concepts_queries.jsonl --out concepts",
    )
    mine.add_argument("source", metavar="SRC", help="folder of a dataset of pictures and texts, a .jsonl file or a .csv file")
    mine.add_argument("--out", required=True, metavar="DIR", help="folder for the files; older ones are replaced")
    mine.add_argument("--column", help="key or column of the texts in a file (default: query_text, description, text, ...)")
    mine.add_argument("--split", default="train", help="split of a dataset")
    mine.add_argument("--name", default="mined", help="first part of the files' names")
    mine.add_argument("--tagger", default="auto", help="spacy, textblob, or auto: spacy if it has an English model")
    mine.add_argument("--min-count", type=int, default=2, metavar="N", help="captions that a phrase has to occur in")
    mine.add_argument("--max-words", type=int, default=6, metavar="N", help="words that a phrase may have")
    mine.add_argument("--max-concepts", type=int, metavar="N", help="keep only the most frequent")
    mine.add_argument("--kb", metavar="FILE", help="second vocabulary (..._concepts_queries.jsonl) for match_phrases")
    mine.add_argument("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    mine.set_defaults(run=_concepts_mine)


def _train_dual(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.dual import train_dual

    train_dual(dual_config(args))
    return 0


def _evaluate_dual(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.dual_commands import evaluate_dual_command

    call(evaluate_dual_command, args, dataset_name=args.dataset, protocol_name=args.protocol)
    return 0


def _evaluate_leaderboard(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.dual_commands import evaluate_leaderboard

    call(
        evaluate_leaderboard,
        args,
        folder=args.catalogue,
        text_column=args.text,
        category_column=args.category,
        sub_category_column=args.sub_category,
    )
    return 0


def _predict_retrieval(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.dual_commands import predict_retrieval, retrieval_table

    results = call(
        predict_retrieval, args, image_scores=args.image_out_path, text_scores=args.text_out_path, block=args.eval_batch_size
    )
    if results and args.progress:
        print(retrieval_table(results))
    return 0 if args.original_errors or all(scores["success"] for scores in results.values()) else 1


def _predict_zero_shot(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.dual_commands import predict_zero_shot

    call(predict_zero_shot, args)
    return 0


def _concepts_mine(args: argparse.Namespace) -> int:
    from tf_fashion.datasets.concept_mining import mine_concepts, read_captions, write_mined
    from tf_fashion.datasets.concepts import ConceptVocabulary, vocabulary_summary

    records = read_captions(args.source, args.column, args.split)
    kb = ConceptVocabulary.read(Path(args.kb)) if args.kb else None
    texts = (record.text for record in records)
    mined = mine_concepts(texts, args.tagger, args.min_count, args.max_words, args.max_concepts, kb, args.progress)
    written = write_mined(args.out, records, mined, args.name)
    found = vocabulary_summary(mined.vocabulary)
    covered = sum(bool(phrases) for phrases in mined.phrases)
    print(f"{found['concepts']} concepts, {found['with_father']} with a father, in {covered} of {len(records)} texts. Written:")
    print("\n".join(f"  {path}" for path in written))
    if len(written) < 3:
        print("The texts are not written, as some do not say which picture they belong to (item_ids, or a column id).")
    return 0
