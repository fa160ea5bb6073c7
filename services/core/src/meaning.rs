//! What the text of a pod's image means. The only place that interprets such texts: the webhook,
//! the controller and the commands agree because they all ask here. Pure.

use serde_json::Value;

use crate::pod::{self, PodImage};
use crate::reference::{self, DEFAULT_TAG, Error, MAX_NAME_LENGTH, Reference, RepositoryName};
use crate::rewrite;

/// Longest `spec.sourceArtifact`, in bytes: host, repository (255), tag (128) and digest fit.
pub const MAX_SOURCE_BYTES: usize = 512;
/// Length of the longest IPv4 address. The length of a local name counts an address of at least
/// this length, so that the answer does not depend on which address is known yet.
const LONGEST_IPV4_ADDRESS: usize = "255.255.255.255".len();
/// Bare words that another webhook is known to replace by an image: `auto` of Istio. Docker Hub has
/// no official image of these names.
const RESERVED_WORDS: [&str; 1] = ["auto"];

/// What the text of a pod's image means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// An image of an upstream.
    Upstream {
        /// The upstream's reference.
        reference: Reference,
        /// Whether the text is malformed, and has exactly one certain repair.
        repaired: bool,
    },
    /// One bare word without a host, path, tag or digest: a short name of Docker Hub, or a word
    /// that another webhook replaces by an image later.
    Placeholder {
        /// The image on Docker Hub.
        reference: Reference,
        /// Whether the text is malformed, and has exactly one certain repair.
        repaired: bool,
    },
    /// This registry's reference to an image of an upstream.
    Local {
        /// The upstream's reference.
        reference: Reference,
    },
    /// An image that a client pushed to this registry. It has no upstream.
    Own {
        /// The repository.
        repository: RepositoryName,
    },
    /// The reference of another cluster's registry, or of an unknown former address of this one, in
    /// a pod whose annotation names the original: the original is meant.
    Restored {
        /// The upstream's reference.
        reference: Reference,
    },
    /// An image of an upstream whose local name is too long for kubelets and runtimes, or whose
    /// reference is too long for an Artifact.
    TooLong {
        /// The upstream's reference.
        reference: Reference,
    },
    /// The text is not a reference, and has no certain repair.
    Unreadable(Error),
}

impl Meaning {
    /// The upstream's image that the registry should hold for a pod with this text.
    pub fn source(&self) -> Option<&Reference> {
        match self {
            Self::Upstream { reference, .. }
            | Self::Placeholder { reference, .. }
            | Self::Local { reference }
            | Self::Restored { reference } => Some(reference),
            Self::Own { .. } | Self::TooLong { .. } | Self::Unreadable(_) => None,
        }
    }

    /// The upstream's reference, also of an image that the registry cannot hold.
    pub fn reference(&self) -> Option<&Reference> {
        match self {
            Self::TooLong { reference } => Some(reference),
            other => other.source(),
        }
    }

    /// Whether the pod pulls from this registry.
    pub fn is_at_registry(&self) -> bool {
        matches!(self, Self::Local { .. } | Self::Own { .. })
    }

    /// Whether the text is a reference that Holdfast wrote, here or in another cluster.
    pub fn is_rewritten(&self) -> bool {
        matches!(self, Self::Local { .. } | Self::Restored { .. })
    }

    /// Whether the text is malformed, and no runtime accepts it as it stands.
    pub fn is_repaired(&self) -> bool {
        matches!(
            self,
            Self::Upstream { repaired: true, .. } | Self::Placeholder { repaired: true, .. }
        )
    }

    /// Whether the text is a bare word that another webhook is known to replace. It names no image
    /// in a template, nor in a pod that is being admitted.
    pub fn is_reserved_word(&self) -> bool {
        let Self::Placeholder { reference, .. } = self else {
            return false;
        };
        let name = reference.repository().components().last();
        name.is_some_and(|name| RESERVED_WORDS.contains(&name))
    }
}

/// What `text` means in a pod whose annotation of originals says `annotated` for this image.
/// `addresses` are all addresses of this registry.
///
/// A text at another address means the annotated original only if its path, tag and digest are
/// exactly those of that original's local name.
pub fn meaning(text: &str, annotated: Option<&str>, addresses: &[String]) -> Meaning {
    let (reference, repaired) = match Reference::parse(text) {
        Ok(reference) => (reference, false),
        Err(error) => match reference::repair(text) {
            // A malformed reference to the registry itself is not repaired: it has no upstream.
            Some(reference) if !rewrite::is_at_any(reference.host(), addresses) => {
                (reference, true)
            }
            _ => return Meaning::Unreadable(error),
        },
    };
    if rewrite::is_at_any(reference.host(), addresses) {
        return match rewrite::served(&reference, addresses) {
            Some(reference) => Meaning::Local { reference },
            None => Meaning::Own {
                repository: reference.repository().clone(),
            },
        };
    }
    if let Some(original) = annotated.and_then(|text| restored(&reference, text, addresses)) {
        return if fits(&original, addresses) {
            Meaning::Restored {
                reference: original,
            }
        } else {
            Meaning::TooLong {
                reference: original,
            }
        };
    }
    if !fits(&reference, addresses) {
        Meaning::TooLong { reference }
    } else if text.contains(['/', '.', ':', '@']) {
        Meaning::Upstream {
            reference,
            repaired,
        }
    } else {
        Meaning::Placeholder {
            reference,
            repaired,
        }
    }
}

/// The annotated original, if `written` has the path, tag and digest of its local name.
fn restored(written: &Reference, annotated: &str, addresses: &[String]) -> Option<Reference> {
    let original = Reference::parse(annotated).ok()?;
    let local = rewrite::local_repository(original.host(), original.repository())?;
    let fits = local == *written.repository()
        && original.tag() == written.tag()
        && original.digest() == written.digest()
        && !rewrite::is_at_any(original.host(), addresses);
    fits.then_some(original)
}

/// Whether every kubelet and runtime accepts the local name, and an Artifact can name the source.
///
/// Kubelets before 1.32 and containerd before 2.0 count the host into the 255 characters of a name.
fn fits(source: &Reference, addresses: &[String]) -> bool {
    let longest = addresses.iter().map(String::len).max().unwrap_or_default();
    let address = longest.max(LONGEST_IPV4_ADDRESS);
    rewrite::local_repository(source.host(), source.repository())
        .is_some_and(|local| address + 1 + local.as_str().len() <= MAX_NAME_LENGTH)
        && source.to_string().len() <= MAX_SOURCE_BYTES
}

/// An image of a pod and its meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodImageMeaning {
    /// The image as the pod declares it now.
    pub image: PodImage,
    /// What it means.
    pub meaning: Meaning,
    /// What the annotation of originals says for it.
    annotated: Option<String>,
}

impl PodImageMeaning {
    /// What the annotation of originals says for it, whether that fits or not.
    pub fn annotated_text(&self) -> Option<&str> {
        self.annotated.as_deref()
    }

    /// The upstream's reference as the author of the pod wrote it, if the annotation means the
    /// same; else in canonical form. `None` for images without an upstream.
    pub fn original_text(&self) -> Option<String> {
        let source = self.meaning.source()?;
        let annotated = self
            .annotated
            .as_ref()
            .filter(|text| is_spelling_of(text, source));
        Some(annotated.map_or_else(|| source.to_string(), Clone::clone))
    }
}

/// The pull policy that the API server sets where a pod names none.
pub fn default_pull_policy(text: &str) -> &'static str {
    let latest = Reference::parse(text).is_ok_and(|reference| {
        reference.digest().is_none()
            && reference
                .tag()
                .is_none_or(|tag| tag.as_str() == DEFAULT_TAG)
    });
    if latest { "Always" } else { "IfNotPresent" }
}

/// Whether a text is a valid spelling of this reference.
pub fn is_spelling_of(text: &str, reference: &Reference) -> bool {
    Reference::parse(text).is_ok_and(|parsed| parsed == *reference)
}

/// The images of a pod (or of any object with a pod's `spec`), with what each means.
pub fn of_pod(pod: &Value, addresses: &[String]) -> Vec<PodImageMeaning> {
    let originals = pod::annotated_originals(pod);
    pod::images(pod)
        .into_iter()
        .map(|image| {
            let annotated = annotated(originals.as_ref(), &image.key());
            PodImageMeaning {
                meaning: meaning(&image.image, annotated, addresses),
                annotated: annotated.map(str::to_owned),
                image,
            }
        })
        .collect()
}

/// The entry of the annotation of originals for the image with this key.
pub fn annotated<'a>(originals: Option<&'a Value>, key: &str) -> Option<&'a str> {
    originals?.get(key)?.as_str()
}

#[cfg(test)]
mod tests;
