# The runtime on an NVIDIA GPU, without PyTorch, for a user that is not root. The host needs a
# driver and the NVIDIA Container Toolkit.
#
#   docker build -f docker/runtime-gpu.Dockerfile -t fada-runtime-gpu .
#   docker run --rm --gpus all --read-only --tmpfs /tmp --cap-drop ALL --network none \
#     -v "$PWD/runs/NAME/export:/models:ro" -v "$PWD/drives:/in:ro" -v "$PWD/out:/out" \
#     --user "$(id -u):$(id -g)" \
#     fada-runtime-gpu infer /in/drive.mp4 --model /models/model.engine --out /out
#
# BACKEND: gpu (ONNX Runtime), tensorrt or tensorrt-rtx. BASE contains the CUDA libraries and cuDNN,
# which ONNX Runtime needs. The driver of the host must support its CUDA version.
ARG BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
FROM ${BASE} AS build
ARG BACKEND=tensorrt-rtx
RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY fada_deploy fada_deploy
RUN python3 -m venv /opt/fada \
 && /opt/fada/bin/pip install --no-cache-dir -c constraints.txt ".[${BACKEND}]" \
 && /opt/fada/bin/pip uninstall --yes pip

FROM ${BASE}
# The same Python in the same place, because a virtual environment only refers to it.
RUN apt-get update && apt-get install --yes --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* && useradd --uid 10001 --create-home fada
COPY --from=build /opt/fada /opt/fada
ENV PATH=/opt/fada/bin:$PATH PYTHONUNBUFFERED=1 MODEL=/models/model.engine \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    HOME=/tmp XDG_CACHE_HOME=/tmp/cache CUPY_CACHE_DIR=/tmp/cupy
USER 10001:10001
WORKDIR /tmp
VOLUME ["/models"]
HEALTHCHECK --interval=60s --timeout=30s --start-period=10s --retries=2 \
  CMD ["sh", "-c", "if [ -e \"$MODEL\" ]; then fada inspect \"$MODEL\"; else fada --version; fi"]
ENTRYPOINT ["fada"]
CMD ["--help"]
