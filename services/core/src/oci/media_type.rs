//! Media types of manifests, and the `Content-Type` of stored manifests.

use serde::Deserialize;

use super::{Manifest, manifest::Object};

/// The `Accept` header of requests for manifests.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// The media type of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ManifestType {
    /// OCI image manifest.
    OciManifest,
    /// OCI image index.
    OciIndex,
    /// Docker image manifest, schema 2.
    DockerManifest,
    /// Docker manifest list.
    DockerList,
}

impl ManifestType {
    /// Every type.
    pub const ALL: [Self; 4] = [
        Self::OciManifest,
        Self::OciIndex,
        Self::DockerManifest,
        Self::DockerList,
    ];

    /// The name in manifests and in `Content-Type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OciManifest => "application/vnd.oci.image.manifest.v1+json",
            Self::OciIndex => "application/vnd.oci.image.index.v1+json",
            Self::DockerManifest => "application/vnd.docker.distribution.manifest.v2+json",
            Self::DockerList => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    /// The type with this name; `None` for other media types.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text)
    }

    /// The type in a `Content-Type` header, whose parameters are ignored.
    pub fn of_header(header: &str) -> Option<Self> {
        Self::parse(header.split(';').next().unwrap_or_default().trim())
    }

    /// Whether it is the type of an index.
    pub const fn is_index(self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }

    /// The type of an image that does not name it. The types of configuration and layers
    /// distinguish Docker's images from others. The layout of distribution stores no
    /// `Content-Type`.
    pub(super) fn of_image<'a>(config: &str, mut layers: impl Iterator<Item = &'a str>) -> Self {
        let is_docker = config.starts_with("application/vnd.docker.")
            || (!config.starts_with("application/vnd.oci.")
                && layers.any(|layer| layer.starts_with("application/vnd.docker.image.")));
        if is_docker {
            Self::DockerManifest
        } else {
            Self::OciManifest
        }
    }

    /// The type of an index that does not name it: Docker's if all entries are Docker's.
    pub(super) fn of_index<'a>(mut children: impl Iterator<Item = &'a str>) -> Self {
        let is_docker = |kind: &str| kind.starts_with("application/vnd.docker.distribution.");
        if children.next().is_some_and(is_docker) && children.all(is_docker) {
            Self::DockerList
        } else {
            Self::OciIndex
        }
    }
}

/// The `Content-Type` of stored bytes. All stored bytes are served. If they are not a valid
/// manifest, their own media type is used if it has the form `application/…`, otherwise that of an
/// OCI image.
pub fn content_type(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Own {
        #[serde(default)]
        media_type: Option<String>,
    }
    let own = serde_json::from_slice::<Object<Own>>(bytes)
        .ok()
        .and_then(|Object(own)| own.media_type)
        .filter(|own| own.starts_with("application/") && is_media_type(own));
    own.unwrap_or_else(|| {
        let kind = Manifest::parse(bytes)
            .map_or(ManifestType::OciManifest, |manifest| manifest.media_type);
        kind.as_str().to_owned()
    })
}

/// Whether a text has the form of a media type without parameters (RFC 6838, section 4.2).
pub fn is_media_type(text: &str) -> bool {
    let is_name = |name: &str| {
        name.len() <= 127
            && name.starts_with(|first: char| first.is_ascii_alphanumeric())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    text.split_once('/')
        .is_some_and(|(kind, subtype)| is_name(kind) && is_name(subtype))
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    fn part(kind: &str) -> String {
        format!(r#"{{"mediaType":"{kind}","digest":"{D}","size":2}}"#)
    }

    #[test]
    fn stored_bytes_are_served_with_a_type_that_can_be_known() {
        let [oci, index, docker, list] = ManifestType::ALL.map(ManifestType::as_str);
        let image = |own: &str, config: &str, layer: &str| {
            let (config, layer) = (part(config), part(layer));
            format!(r#"{{"schemaVersion":2{own},"config":{config},"layers":[{layer}]}}"#)
        };
        let of = |own: &str, children: &[&str]| {
            let children: Vec<_> = children.iter().map(|kind| part(kind)).collect();
            let children = children.join(",");
            format!(r#"{{"schemaVersion":2{own},"manifests":[{children}]}}"#)
        };
        let docker_config = "application/vnd.docker.container.image.v1+json";
        let docker_layer = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        let oci_config = "application/vnd.oci.image.config.v1+json";
        let typed = |kind: &str| format!(r#","mediaType":"{kind}""#);
        for (bytes, expect) in [
            (image(&typed(docker), oci_config, "l"), docker),
            (image(&typed(oci), docker_config, docker_layer), oci),
            (image("", docker_config, docker_layer), docker),
            (
                image("", "application/vnd.docker.plugin.v1+json", "l"),
                docker,
            ),
            (image("", "application/octet-stream", docker_layer), docker),
            (image("", oci_config, docker_layer), oci),
            (image("", "c/t", "l"), oci),
            (image(r#","mediaType":null"#, docker_config, "l"), docker),
            (image(r#","mediaType":"""#, docker_config, "l"), docker),
            (of("", &[docker, docker]), list),
            (of("", &[docker, oci]), index),
            (of("", &[]), index),
            (of(&typed(list), &[oci]), list),
            // What no reader takes, and what could harm a client.
            (
                image(&typed("application/x-own+json"), "c", "l"),
                "application/x-own+json",
            ),
            (image(&typed("text/html"), "c", "l"), oci),
            (image(&typed("application/a\\r\\nX-Y: z"), "c", "l"), oci),
            (image(&typed("application/a; charset=x"), "c", "l"), oci),
            (image(&typed("application/"), "c", "l"), oci),
            (image(r#","mediaType":5"#, "c", "l"), oci),
            (r#"["application/x-own"]"#.to_owned(), oci),
            ("<html>".to_owned(), oci),
        ] {
            assert_eq!(content_type(bytes.as_bytes()), expect, "{bytes}");
        }
    }

    #[test]
    fn headers_name_a_type_whatever_their_parameters() {
        for kind in ManifestType::ALL {
            let header = format!(" {} ; charset=utf-8", kind.as_str());
            assert_eq!(ManifestType::of_header(&header), Some(kind));
        }
        for header in ["", "application/json", "*/*"] {
            assert_eq!(ManifestType::of_header(header), None, "{header}");
        }
    }
}
