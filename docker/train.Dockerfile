# Training and export. INDEX is the package index of the PyTorch build: by default one for CUDA.
#
#   docker build -f docker/train.Dockerfile -t fada-train .
#   docker run --rm --gpus all --shm-size 8g \
#     -v "$PWD/datasets:/work/datasets:ro" -v "$PWD/runs:/work/runs" \
#     --user "$(id -u):$(id -g)" fada-train train --src gta5 --tgt cityscapes
FROM python:3.11-slim AS build
ARG INDEX=https://download.pytorch.org/whl/cu130
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY fada_deploy fada_deploy
RUN python -m venv /opt/fada \
 && /opt/fada/bin/pip install --no-cache-dir --index-url "$INDEX" \
      "$(grep '^torch==' constraints.txt)" \
 && /opt/fada/bin/pip install --no-cache-dir -c constraints.txt \
      ".[export,openvino,plot,tensorboard]"

FROM python:3.11-slim
COPY --from=build /opt/fada /opt/fada
COPY configs /work/configs
RUN useradd --uid 10001 --create-home fada && mkdir -p /work/runs && chown -R 10001:10001 /work
ENV PATH=/opt/fada/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp
USER 10001:10001
WORKDIR /work
HEALTHCHECK --interval=60s --timeout=30s CMD ["fada", "--version"]
ENTRYPOINT ["fada"]
CMD ["--help"]
