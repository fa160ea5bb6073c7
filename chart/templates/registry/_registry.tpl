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

{{/* Secrets of access, as JSON: the name and the folder below /etc/holdfast/access. */}}
{{- define "holdfast.accessSecrets" -}}
{{- $access := .Values.registry.access -}}
{{- $secrets := list -}}
{{- with $access.htpasswdSecret -}}
{{- $secrets = append $secrets (dict "folder" "htpasswd" "secret" .) -}}
{{- end -}}
{{- with $access.clientCaSecret -}}
{{- $secrets = append $secrets (dict "folder" "client-ca" "secret" .) -}}
{{- end -}}
{{- with $access.token.secretName -}}
{{- $secrets = append $secrets (dict "folder" "token" "secret" .) -}}
{{- end -}}
{{- $secrets | toJson -}}
{{- end -}}

{{/* Names of the Secrets with credentials for upstreams, each once, as JSON. */}}
{{- define "holdfast.upstreamSecrets" -}}
{{- $names := list -}}
{{- range .Values.upstreams -}}
{{- with get . "credentialsSecret" -}}
{{- $names = append $names . -}}
{{- end -}}
{{- range (get . "mirrorCredentials" | default list) -}}
{{- with get . "credentialsSecret" -}}
{{- $names = append $names . -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $names | uniq | toJson -}}
{{- end -}}

{{/* The values' headers of notification endpoints, as JSON: a key of the Secret, the file that it
     becomes, and the value. A header's name is no key of a Secret, because not all of its letters
     are allowed there. */}}
{{- define "holdfast.notificationHeaders" -}}
{{- $headers := list -}}
{{- range $place, $endpoint := .Values.registry.notifications.endpoints -}}
{{- range $name, $value := get $endpoint "headers" | default dict -}}
{{- $key := printf "header-%d" (len $headers) -}}
{{- $headers = append $headers (dict "key" $key "path" (printf "%d/%s" $place $name) "value" $value) -}}
{{- end -}}
{{- end -}}
{{- $headers | toJson -}}
{{- end -}}

{{/* Names of the Secrets with headers of notification endpoints, each once, as JSON. */}}
{{- define "holdfast.notificationSecrets" -}}
{{- $names := list -}}
{{- range .Values.registry.notifications.endpoints -}}
{{- with get . "headersSecret" -}}
{{- $names = append $names . -}}
{{- end -}}
{{- end -}}
{{- $names | uniq | toJson -}}
{{- end -}}
