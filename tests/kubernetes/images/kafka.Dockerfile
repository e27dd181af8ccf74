# Stands in for docker.io/apache/kafka where no image registry is reached: the same folders and commands.
ARG BASE=python:3.12-slim
FROM ${BASE}
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends openjdk-17-jre-headless >/dev/null \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --no-log-init appuser
COPY lib /opt/kafka/libs
COPY bin /opt/kafka/bin
USER 1000:1000
