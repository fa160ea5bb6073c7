{{/* Requests and limits of the registry: its own, else what the scale says (SPEC 30). */}}
{{- define "holdfast.registryResources" -}}
{{- if .Values.registry.resources -}}
{{- toYaml .Values.registry.resources -}}
{{- else -}}
{{- $presets := dict
  "small" (dict "requests" (dict "cpu" "100m" "memory" "250Mi") "limits" (dict "cpu" "100m" "memory" "2Gi"))
  "medium" (dict "requests" (dict "cpu" "250m" "memory" "500Mi") "limits" (dict "cpu" "500m" "memory" "2Gi"))
  "large" (dict "requests" (dict "cpu" "500m" "memory" "1Gi") "limits" (dict "cpu" "1" "memory" "4Gi")) -}}
{{- get $presets .Values.global.networkfunctionextension.clusterRegistry.registryService.scale | toYaml -}}
{{- end -}}
{{- end -}}

{{/* Names of the Secrets with credentials for upstreams, each once, as JSON. */}}
{{- define "holdfast.upstreamSecrets" -}}
{{- $names := list -}}
{{- range .Values.upstreams -}}
{{- with get . "credentialsSecret" -}}
{{- $names = append $names . -}}
{{- end -}}
{{- end -}}
{{- $names | uniq | toJson -}}
{{- end -}}
