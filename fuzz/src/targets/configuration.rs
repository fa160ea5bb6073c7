//! Values, the services' document, and the file of a registry that runs alone.

use holdfast_config::{Config, Cron, Standalone, Values, yaml};

use super::text;
use crate::{Shape, Target, ensure, shape};

/// Values.
pub(super) const VALUES: Target = Target {
    name: "values",
    promise: "no document panics or takes long, and what is taken is taken again, the same, when it is written out",
    check: values,
    dictionary: &[
        "global:\n",
        "  networkfunctionextension:\n",
        "    enableClusterRegistry: true\n",
        "    clusterRegistry:\n",
        "      storageSize: 100Gi\n",
        "      clusterRegistryGCCadence: '0 0 * * *'\n",
        "registry:\n",
        "  limits: {holdSeconds: 1}\n",
        "upstreams:\n",
        "- host: a.b\n",
        "  endpoint: https://a\n",
        "&a [*a]",
        "&a ",
        "*a",
        "<<: *a",
        "!!binary ",
        "!tag",
        "|\n",
        ">-\n",
        "---\n",
        "{",
        "}",
        "[",
        "]",
        "null",
        "~",
        "listen: '127.0.0.1:5000'\n",
        "values: {}\n",
        "release: {name: a, namespace: b, fullname: c, version: '1'}\n",
        "1_000",
        "0x10",
        ".inf",
    ],
    max_bytes: 3_000,
};

fn values(input: &[u8]) -> Result<Shape, String> {
    let text = text(input);
    let values = Values::parse(&text);
    if let Ok(values) = &values {
        let written =
            yaml::to_string(values).map_err(|error| format!("cannot be written: {error}"))?;
        let again = Values::parse(&written)
            .map_err(|error| format!("written out it is refused: {error}"))?;
        ensure(again == *values, || {
            "written out it means another".to_owned()
        })?;
    }
    let alone = Standalone::parse(&text);
    if let Ok(alone) = &alone {
        let written =
            yaml::to_string(alone).map_err(|error| format!("cannot be written: {error}"))?;
        let again = Standalone::parse(&written)
            .map_err(|error| format!("alone: written out it is refused: {error}"))?;
        ensure(again == *alone, || {
            "alone: written out it means another".to_owned()
        })?;
    }
    let config = Config::parse(&text);
    let cron = Cron::parse(&text);
    let kind = |error: &holdfast_config::Error| {
        format!("{error}")
            .split([':', '`', ' '])
            .take(2)
            .collect::<Vec<_>>()
            .join(" ")
    };
    Ok(shape((
        values.as_ref().map(|_| ()).map_err(kind),
        alone.map(|_| ()).map_err(|error| kind(&error)),
        config.is_ok(),
        cron.is_ok(),
    )))
}
