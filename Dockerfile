# docker build -t retort .                                        for a CPU
# docker build -t retort --build-arg DEVICE=cuda .                for NVIDIA GPUs: docker run --gpus all ...
# docker run -v "$PWD/data:/data" -v "$PWD/save:/retort/save" retort python train_teacher.py --model resnet8 --dataset digits
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
ARG DEVICE=cpu
WORKDIR /retort
ENV VIRTUAL_ENV=/opt/retort PATH=/opt/retort/bin:$PATH PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/retort
# the requirements first: a change of code leaves this layer as it is
COPY requirements.txt requirements-extra.txt ./
COPY scripts ./scripts
RUN bash scripts/setup.sh $([ "$DEVICE" = cpu ] && echo --cpu)
COPY . .
CMD ["python", "train_student.py", "--help"]
