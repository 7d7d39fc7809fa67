"""Prepares videos for a model: transformers' video processor with this package's decoder.

In: the fields of an image model's processor. Out: the fields of a `video_preprocessor_config.json`, with which each
frame becomes what the image processor makes of it as an image; and the processor itself, for paths of files or frames.

transformers' own video processors decode files with torchcodec only, which needs FFmpeg on the system.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor, BatchFeature
from transformers.models.videomae.video_processing_videomae import VideoMAEVideoProcessor
from transformers.video_utils import VideoMetadata

from swinv2.errors import UsageError
from swinv2.video.reading import decoder_of, probe, read_frames
from swinv2.video.sampling import uniform_times

VIDEO_PROCESSOR = "video_preprocessor_config.json"
"""The file of a video processor."""

_SQUASHED_FROM = 384
"""The image size from which ConvNeXt's processor ignores its `crop_pct`."""

_FIELDS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


class Swinv2VideoProcessor(VideoMAEVideoProcessor):
    """transformers' `VideoMAEVideoProcessor`, which reads files with `swinv2.video.reading`.

    After `swinv2.register()`, `AutoVideoProcessor` and `pipeline("video-classification")` build it. Called with paths
    of files, or with decoders of torchcodec such as `datasets` has in a column of videos, it samples `num_frames`
    frames evenly over each video; a video may have fewer. `do_sample_frames=False` reads all frames. Frames are taken
    as they are, without sampling.
    """

    num_frames: int | None = None
    fps: float | None = None

    def preprocess(self, videos: Any, **kwargs: Any) -> BatchFeature:
        """Prepares videos; see transformers' `VideoMAEVideoProcessor`.

        Args:
            videos: Paths, torchcodec's decoders or batches of frames, or frames as transformers takes them.
            kwargs: Fields of the processor for this call. `num_frames`, or `fps` instead of it, samples frames of files
                and decoders.

        Raises:
            VideoError: A file cannot be used.
        """
        given = [kwargs.get(name) for name in ("num_frames", "fps")]
        if given[0] is None and given[1] is not None:
            # The rate of the call, not the number of the processor.
            kwargs["num_frames"] = None
        together = videos if isinstance(videos, list | tuple) else [videos]
        together = [str(video) if isinstance(video, Path) else video for video in together]
        if all(isinstance(video, str) or _is_decoded(video) for video in together):
            known = any(each is not None for each in (*given, self.num_frames, self.fps))
            is_sampled = kwargs.setdefault("do_sample_frames", known)
            wanted = {name: kwargs.get(name) for name in ("num_frames", "fps")} if is_sampled else None
            together = [self._frames_of(video, wanted) if _is_decoded(video) else video for video in together]
            if not any(isinstance(video, str) for video in together):
                kwargs["do_sample_frames"] = False
        prepared: Any = together if isinstance(videos, list | tuple) else together[0]
        return super().preprocess(prepared, **kwargs)

    def _frames_of(self, video: Any, wanted: Mapping[str, Any] | None) -> Tensor:
        """The frames of a decoder, all of them if none are `wanted`, or those of a batch of frames."""
        if not hasattr(video, "get_frames_at"):
            return video.data
        metadata = VideoMetadata(total_num_frames=len(video), fps=video.metadata.average_fps)
        chosen = range(len(video)) if wanted is None else self.sample_frames(metadata, **wanted)
        return video.get_frames_at([int(index) for index in chosen]).data

    def sample_frames(
        self, metadata: VideoMetadata, num_frames: int | None = None, fps: float | None = None, **kwargs: Any
    ) -> np.ndarray:
        """The indices of frames that are spread evenly over a video: the middle of each of `num_frames` parts.

        Args:
            metadata: The video.
            num_frames: Number of frames; None for the processor's, or for `fps`.
            fps: Frames per second instead of a number.
            kwargs: Fields of the processor, which have no effect here.

        Raises:
            ValueError: Neither a number nor a rate is known.
        """
        rate = self.fps if fps is None else fps
        number = self.num_frames if num_frames is None and fps is None else num_frames
        if number is None and rate is not None and metadata.fps:
            number = max(round(metadata.total_num_frames / metadata.fps * rate), 1)
        if number is None:
            raise ValueError("neither num_frames nor fps is known; give the processor one of them.")
        return np.floor((np.arange(number) + 0.5) * metadata.total_num_frames / number).astype(np.int64)

    def fetch_videos(
        self,
        video_url_or_urls: str | list[Any],
        sample_indices_fn: Callable[..., Any] | None = None,
    ) -> Any:
        """Reads video files.

        Args:
            video_url_or_urls: A file, or a list of files. Addresses are left to transformers.
            sample_indices_fn: Chooses the frames by their indices, from a `VideoMetadata`; None for all frames.

        Returns:
            Frames (number, height, width, 3) of eight bits, and the metadata; of a list, a list of each.

        Raises:
            VideoError: A file cannot be used.
        """
        if not isinstance(video_url_or_urls, str | list):
            raise ValueError(
                f"a video is a {type(video_url_or_urls).__name__} of another form than expected: a path, or frames of "
                "3 channels, of one size."
            )
        if isinstance(video_url_or_urls, list):
            return list(zip(*(self.fetch_videos(each, sample_indices_fn) for each in video_url_or_urls), strict=True))
        if video_url_or_urls.startswith(("http://", "https://")):
            return super().fetch_videos(video_url_or_urls, sample_indices_fn=sample_indices_fn)
        info = probe(video_url_or_urls)
        metadata = VideoMetadata(
            total_num_frames=info.frames,
            fps=info.rate,
            duration=info.seconds,
            height=info.size[0],
            width=info.size[1],
            video_backend=decoder_of(video_url_or_urls),
        )
        if sample_indices_fn is None:
            times = uniform_times(info, info.frames)
        else:
            indices = [int(index) for index in sample_indices_fn(metadata=metadata)]
            metadata.frames_indices = indices
            times = [(index + 0.5) / info.rate for index in indices]
        return read_frames(video_url_or_urls, times, info), metadata


def _is_decoded(video: Any) -> bool:
    """Whether a video is one of torchcodec's objects, a decoder or a batch of frames."""
    return hasattr(video, "get_frames_at") or (hasattr(video, "pts_seconds") and hasattr(video, "data"))


def make_video_processor(fields: Mapping[str, Any], num_frames: int | None = None) -> dict[str, Any]:
    """Makes the fields of a video processor from those of an image processor.

    Args:
        fields: Those of a `preprocessor_config.json`. For other image sizes, change them first.
        num_frames: Frames that are sampled of a file; None for all.

    Returns:
        The fields of a `video_preprocessor_config.json`. Of each frame, the processor makes exactly the pixels that the
        image processor makes of it.

    Raises:
        UsageError: It is an image processor of another kind, so the pixels would differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(dict(fields)), encoding="utf-8")
        try:
            image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"the image processor cannot be used: {error}") from error
    known: dict[str, Any] = image_processor.to_dict()
    made = {name: known[name] for name in _FIELDS if known.get(name) is not None}
    made["resample"] = int(made.get("resample", 2))
    share, edge = known.get("crop_pct"), (known.get("size") or {}).get("shortest_edge")
    if share and edge:
        squashes = edge >= _SQUASHED_FROM
        made["size"] = {"height": edge, "width": edge} if squashes else {"shortest_edge": int(edge / share)}
        made["crop_size"] = {"height": edge, "width": edge}
        made["do_center_crop"] = not squashes
    # What the image processor does not do, the video processor would do by default.
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        made[name] = bool(made.get(name, False))
    if not made["do_center_crop"]:
        made.pop("crop_size", None)
    made |= {"do_convert_rgb": False, "do_sample_frames": False, "video_processor_type": "Swinv2VideoProcessor"}
    made |= {} if num_frames is None else {"num_frames": num_frames}
    _check_equal(image_processor, Swinv2VideoProcessor(**made))
    return made


def _check_equal(image_processor: Any, video_processor: Any) -> None:
    """Raises an error unless both processors make the same pixels of an image.

    Raises:
        UsageError: They do not.
    """
    values = torch.arange(90 * 130 * 3).mul(2654435761).remainder(256)
    image = values.to(torch.uint8).view(3, 90, 130)
    settings = {"return_tensors": "pt", "input_data_format": "channels_first"}
    expected = image_processor(images=image, **settings)["pixel_values"]
    found = video_processor(videos=[image[None]], **settings)["pixel_values"][0]
    if expected.shape != found.shape or not torch.equal(expected, found):
        raise UsageError(
            f"a video processor that does the same as the image processor {type(image_processor).__name__} cannot be "
            "made; expected one that resizes, crops the centre and normalises, such as ViTImageProcessor or "
            "BitImageProcessor."
        )
