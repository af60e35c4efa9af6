"""Sources of frames: images, videos, cameras, streams, pipes and watched folders."""
