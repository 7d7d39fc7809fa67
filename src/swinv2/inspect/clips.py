"""Draws all figures of a video model: the command `swinv2 inspect` for videos.

In: a model's name and video files. Out: the files and numbers of `gallery`, of one clip of each video.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from swinv2.images import BrokenImage
from swinv2.inspect.gallery import Inspector
from swinv2.inspect.observation import observe
from swinv2.inspect.over_time import draw_attention_over_time, draw_components_over_time, shares_over_time
from swinv2.inspect.view import look_at_clip
from swinv2.loading import load_video_processor
from swinv2.video.files import VideoError, VideoInfo
from swinv2.video.models import Swinv2VideoModel
from swinv2.video.reading import probe
from swinv2.video.sampling import Sampling
from swinv2.video.views import Views


class VideoInspector(Inspector):
    """Draws figures of a video model; see `Inspector`."""

    model: Swinv2VideoModel
    model_class = Swinv2VideoModel
    load_processor_of = staticmethod(load_video_processor)

    def inspect(
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
            time: Seconds since the beginning of each video; the token is in the frame that is shown then, and the clip
                around it. None for the middle of the clip that a classifier would see.
            num_frames, stride: See `predict.videos.VideoClassifier.views`.

        Returns:
            For each file, in order, the reason why it was skipped, or a dictionary for JSON, as that of
            `Inspector.inspect`; "video" is the file, "times" has the seconds of the frames, "frame" is the index of the
            token's frame, and each stage has "over_time": for each head, the sum of the token's weights for each place
            in time. A video that ends before `time` is skipped.

        Raises:
            UsageError: The point is not in a frame of a video, or a number is impossible.
        """
        views = Views(self.processor, Sampling.of_model(self.model.config, num_frames, stride))
        for path in paths:
            try:
                yield path, self._inspect_clip(probe(path), views, output, point, time)
            except VideoError as error:
                yield path, BrokenImage(path, error.reason)

    def _inspect_clip(
        self, info: VideoInfo, views: Views, output: Path, point: tuple[int, int] | None, time: float | None
    ) -> dict[str, Any]:
        """Draws the figures of a clip, and returns their numbers and names."""
        if time is None:
            (times,) = views.times(info)
            frame = len(times) // 2
        elif 0 <= time <= info.seconds:
            times = views.sampling.around(info, time)
            frame = int(np.abs(np.array(times) - time).argmin())
        else:
            last = math.floor(100 * info.seconds) / 100
            raise VideoError(info.path, f"--time is {time:g}, and the video has {last:.2f} seconds")
        view = look_at_clip(info, times, views)
        pixel = view.find(point)
        seen = observe(self.model, view.pixel_values.to(self.model.device, self.model.dtype))
        self.amplitudes.add(seen)
        of_patch = self.model.config.tubelet_size
        attentions, token_sizes, numbers = self._attentions(seen, pixel, frame // of_patch)
        for each, attention in zip(numbers, attentions.values(), strict=True):
            each["over_time"] = shares_over_time(attention).tolist()
        components, sizes_of_maps = self._components(seen)
        # The middle frame of each patch, of which the last may have fewer frames; of the token's patch, its frame.
        starts = range(0, len(times), of_patch)
        middles = [(start + min(start + of_patch, len(times))) // 2 for start in starts]
        middles[frame // of_patch] = frame
        shown, seconds = view.rgb[middles], [times[middle] for middle in middles]
        files, about = self._figures_of(info.path, output)
        draw_attention_over_time(
            attentions,
            shown,
            seconds,
            token_sizes,
            files[0],
            f"Attention of one token at {times[frame]:.2f} s: {about}",
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
