# An image that runs every entry point:  docker build -t dinox .                       (CPU; smaller with TORCH_INDEX)
#                                        docker build -t dinox --build-arg TORCH=cuda .  (needs the NVIDIA container toolkit)
# Run:  docker run --rm --shm-size=8g [--gpus all] -v "$PWD/work:/work" dinox pretrain --recipe demo
# Loader processes hand batches over through /dev/shm, of which a container has 64 MB: without --shm-size a training with
# workers waits for ever or ends with a bus error. Cohorts, runs and the store lie in /work.
FROM python:3.12-slim

ARG TORCH=cpu
# Address of an index of CPU builds of torch; without one the build with CUDA is installed, 5 GB more.
ARG TORCH_INDEX=""

COPY . /source
RUN if [ "$TORCH" = cpu ] && [ -n "$TORCH_INDEX" ]; then \
      pip install --no-cache-dir --constraint /source/constraints.txt --index-url "$TORCH_INDEX" torch torchvision; \
    fi \
    && pip install --no-cache-dir --constraint /source/constraints.txt /source \
    && rm -rf /source

RUN useradd --create-home --uid 10001 dinox && mkdir /work && chown dinox /work
USER 10001
WORKDIR /work
ENTRYPOINT ["dinox"]
CMD ["--help"]
