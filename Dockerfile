# The trunkline binary with the features of a release (.ci/release): TLS and SASL/SCRAM for Kafka.
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends libssl-dev pkg-config && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p trunkline --features kafka-tls

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends libssl3 ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/trunkline /usr/local/bin/trunkline
# A new named volume inherits the owner of the directory it is mounted over.
RUN install -d -o nobody -g nogroup /var/lib/trunkline
USER nobody
ENTRYPOINT ["trunkline"]
