# The runtime on a CPU, without PyTorch and compilers, for a user that is not root.
#
#   docker build -f docker/runtime.Dockerfile -t fada-runtime .
#   docker run --rm --read-only --tmpfs /tmp --cap-drop ALL --network none \
#     -v "$PWD/runs/NAME/export:/models:ro" -v "$PWD/drives:/in:ro" -v "$PWD/out:/out" \
#     --user "$(id -u):$(id -g)" \
#     fada-runtime infer /in/drive.mp4 --model /models/model.onnx --out /out
#
# BACKEND: cpu (ONNX Runtime) or openvino (Intel CPUs). Pin the base image by its digest in your
# own build.
FROM python:3.11-slim AS build
ARG BACKEND=cpu
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY fada_deploy fada_deploy
RUN python -m venv /opt/fada \
 && /opt/fada/bin/pip install --no-cache-dir -c constraints.txt ".[${BACKEND}]" \
 && /opt/fada/bin/pip uninstall --yes pip

FROM python:3.11-slim
COPY --from=build /opt/fada /opt/fada
RUN useradd --uid 10001 --create-home fada
ENV PATH=/opt/fada/bin:$PATH PYTHONUNBUFFERED=1 MODEL=/models/model.onnx \
    HOME=/tmp XDG_CACHE_HOME=/tmp/cache
USER 10001:10001
WORKDIR /tmp
VOLUME ["/models"]
# Healthy if the hashes of the mounted model match; without a model, if the program starts.
HEALTHCHECK --interval=60s --timeout=30s --start-period=10s --retries=2 \
  CMD ["sh", "-c", "if [ -e \"$MODEL\" ]; then fada inspect \"$MODEL\"; else fada --version; fi"]
ENTRYPOINT ["fada"]
CMD ["--help"]
