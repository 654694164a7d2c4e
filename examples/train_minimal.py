"""The whole training loop of MoTE on one page, to be copied and changed.

    accelerate launch examples/train_minimal.py --data my_videos --model openai/clip-vit-base-patch16 --output runs/a

`my_videos` holds one folder per class. The image tower stays frozen and every frame is encoded in every step; `mote
train` does more: it caches the frames, resumes, averages weights, takes benchmarks, CSV lists and recipes.
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from modeling_mote.feature_cache import class_features
from modeling_mote.loading import load_to_train
from modeling_mote.processing.augmentation import train_transform
from modeling_mote.processing.builders import load_videos
from modeling_mote.processing.clip_batches import ClipBatches
from modeling_mote.processing.clips import VideoClips
from modeling_mote.processing.files import whole_folder
from modeling_mote.training import Batches, freeze, parameter_groups, smooth_lr_at, step_generator, validate
from modeling_mote.training_data import class_indices, hold_out, training_classes

FRAMES, EPOCHS, WARMUP, LR, SEED = 8, 20, 1, 1e-3, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with one folder per class")
    parser.add_argument("--model", required=True, help="CLIP or MoTE to start from: folder or Hub id")
    parser.add_argument("--output", required=True, help="folder for the trained model")
    parser.add_argument("--batch_size", type=int, default=8, help="clips per process and step")
    options = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    set_seed(SEED)

    # Data: undecoded rows, then pixels of 8 frames drawn anew in each epoch.
    with accelerator.main_process_first():
        rows, held_out = hold_out(load_videos(options.data, "train"), share=0.2, seed=SEED)
    classes = training_classes(rows)
    model, processor = load_to_train(options.model, FRAMES)
    model.to(accelerator.device)
    pixels = {
        "video_processor": processor.video_processor,
        "num_frames": FRAMES,
        "labels": class_indices(rows, classes),
    }
    transform = train_transform(model.config.vision_config.image_size, flip=0)  # 0: left is not right
    clips = VideoClips(rows, sampling="train", transform=transform, seed=SEED, **pixels)
    validation = None if held_out is None else VideoClips(held_out, sampling="val", **pixels)

    # Model: the class names' text features are the classifier, and only the temporal layers are trained.
    model.set_training_classes(classes, class_features(model, processor, classes))
    freeze(model, image_tower=True)
    optimizer = torch.optim.AdamW(parameter_groups(model, LR, clip_lr=0.0), betas=(0.9, 0.999))
    prepared, optimizer = accelerator.prepare(model, optimizer)

    place = {"rank": accelerator.process_index, "world": accelerator.num_processes}
    batches = Batches(len(clips), options.batch_size, EPOCHS, SEED, **place)
    per_epoch = batches.steps_per_epoch
    with ClipBatches(clips, batches, num_workers=2) as read:
        for step, batch in enumerate(read):
            for group in optimizer.param_groups:
                group["lr"] = smooth_lr_at(*divmod(step, per_epoch), per_epoch, EPOCHS, WARMUP, group["peak_lr"])
            if batch["errors"]:
                raise SystemExit(f"error: {batch['errors'][0][2]}")
            prepared.train()
            # One expert per layer for the first pass, a random merge of all for the second, alike on every process.
            mixture, merge_mixture = model.draw_mixtures(step_generator(SEED + 1, step))
            inputs, labels = clips.inputs(batch, accelerator.device), batch["labels"].to(accelerator.device)
            loss = prepared(**inputs, labels=labels, mixture=mixture, merge_mixture=merge_mixture).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            if (step + 1) % per_epoch == 0:
                said = f"epoch {(step + 1) // per_epoch} of {EPOCHS}, loss {loss.item():.3f}"
                if validation is not None:
                    measured = validate(model, validation, accelerator, options.batch_size)
                    said += f", top-1 {100 * measured['accuracy']:.1f} % on {measured['listed']} clips held out"
                accelerator.print(said)

    if accelerator.is_main_process:
        with whole_folder(options.output) as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
    accelerator.end_training()


if __name__ == "__main__":
    main()
