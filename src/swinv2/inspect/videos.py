"""Draws all figures of a video model: the command `swinv2 inspect` for videos.

In: a model's name and video files. Out: the files and numbers of `gallery`, of one clip of each video.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from swinv2.errors import UsageError
from swinv2.images import BrokenImage
from swinv2.inspect.gallery import Inspector
from swinv2.inspect.observation import observe
from swinv2.inspect.over_time import draw_attention_over_time, draw_components_over_time, shares_over_time
from swinv2.inspect.view import look_at_clip
from swinv2.loading import load_video_processor
from swinv2.video.models import Swinv2VideoModel
from swinv2.video.reading import VideoError, VideoInfo, probe
from swinv2.video.sampling import Sampling


class VideoInspector(Inspector):
    """Draws figures of a video model; see `Inspector`."""

    model_class = Swinv2VideoModel
    load_processor_of = staticmethod(load_video_processor)

    def inspect_clips(
        self,
        paths: Iterable[Path],
        output: Path,
        point: tuple[int, int] | None = None,
        time: float | None = None,
        num_frames: int | None = None,
        stride: float | None = None,
    ) -> Iterator[tuple[Path, dict[str, Any] | BrokenImage]]:
        """For a clip of each video, draws the attention of a token and the feature maps.

        Args:
            paths: The files.
            output: The folder to write to.
            point: A point (x, y) of the token, in pixels of each video's frames; None for the centre.
            time: Seconds since the beginning of each video at which the token is; the clip is around this time. None
                for the middle of the video.
            num_frames, stride: See `predict.videos.VideoClassifier.views`.

        Returns:
            For each file, in order, the reason why it was skipped, or a dictionary for JSON, as that of
            `Inspector.inspect`; "video" is the file, "times" has the seconds of the frames, "frame" is the index of the
            token's frame, and each stage has "over_time": for each head, the sum of the token's weights for each place
            in time.

        Raises:
            UsageError: The point or the time is not in a video.
        """
        config = self.model.config
        sampling = Sampling(
            config.num_frames if num_frames is None else num_frames,
            config.frame_stride if stride is None else stride,
        )
        for path in paths:
            try:
                yield path, self._inspect_clip(probe(path), sampling, output, point, time)
            except VideoError as error:
                yield path, BrokenImage(path, error.reason)

    def _inspect_clip(
        self, info: VideoInfo, sampling: Sampling, output: Path, point: tuple[int, int] | None, time: float | None
    ) -> dict[str, Any]:
        """Draws the figures of a clip, and returns their numbers and names."""
        if time is not None and not 0 <= time <= info.seconds:
            raise UsageError(
                f"--time is {time:g}, but {info.path.name} has {info.seconds:.2f} seconds; expected 0 to "
                f"{info.seconds:.2f}."
            )
        wanted = info.seconds / 2 if time is None else time
        times = sampling.around(info, wanted)
        view = look_at_clip(info, times, self.processor)
        pixel, frame = view.find(point), int(np.abs(np.array(times) - wanted).argmin())
        seen = observe(self.model, view.pixel_values.to(self.model.device, self.model.dtype))
        self.amplitudes.add(seen)
        of_patch = self.model.config.tubelet_size
        attentions, token_sizes, numbers = self._attentions(seen, pixel, frame // of_patch)
        for each, attention in zip(numbers, attentions.values(), strict=True):
            each["over_time"] = shares_over_time(attention).tolist()
        components, sizes_of_maps = self._components(seen)
        # The middle frame of each patch; the last patch may have fewer frames.
        starts = range(0, len(times), of_patch)
        middles = [(start + min(start + of_patch, len(times))) // 2 for start in starts]
        middles = [min(middle, len(times) - 1) for middle in middles]
        shown, seconds = view.rgb[middles], [times[middle] for middle in middles]
        name = self._name_of(info.path)
        files = [output / f"attention-{name}.png", output / f"features-{name}.png"]
        about = f"{info.path.name} seen by {self.name}"
        draw_attention_over_time(
            attentions, shown, seconds, token_sizes, files[0], f"Attention of one token over time: {about}"
        )
        draw_components_over_time(
            components, shown, seconds, sizes_of_maps, files[1], f"Feature maps by principal components: {about}"
        )
        return {
            "video": str(info.path),
            "size": (view.size[1], view.size[0]),
            "seen": view.box,
            "pixel": (pixel[1], pixel[0]),
            "frame": frame,
            "times": times,
            "stages": numbers,
            "files": [str(file) for file in files],
        }
