//! Recognizes environment variables that Kubernetes sets in each container for the Services of its namespace.
//!
//! For a Service `trunkline-edge`, containers that are created later have `TRUNKLINE_EDGE_SERVICE_HOST`,
//! `TRUNKLINE_EDGE_PORT` and other variables in the format of Docker links. They are not keys of the configuration.
//! <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>

/// Whether Kubernetes sets this variable for a Service.
pub(super) fn is_service_variable(name: &str, value: &str) -> bool {
    if name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return true;
    }
    // A configuration key may end in `port` too, but no key has such a URL as its value.
    if name.ends_with("_PORT") && is_link(value) {
        return true;
    }
    // `_PORT_80_TCP`, `_PORT_80_TCP_ADDR` and so on.
    name.rmatch_indices("_PORT_").any(|(at, separator)| {
        let rest = name.get(at + separator.len()..).unwrap_or_default();
        let mut parts = rest.split('_');
        let port = parts.next().unwrap_or_default();
        let is_port = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let is_protocol = matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"));
        let is_field = matches!(parts.next(), None | Some("PROTO" | "PORT" | "ADDR"));
        is_port && is_protocol && is_field && parts.next().is_none()
    })
}

fn is_link(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme))
}
