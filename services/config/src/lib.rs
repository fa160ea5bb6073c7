//! Values: Helm values, JSON schema, documentation and service configuration in one type.
