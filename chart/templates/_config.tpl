{{/* The document that a part reads: the release, and of the values only what that part uses. It
     never has keys of `global` that belong to other charts, nor what only the pod template needs
     (such as environment variables), so that a value restarts only the parts that read it. Call
     with (dict "root" $ "component" NAME); `config` is what commands read. */}}
{{- define "holdfast.config" -}}
{{- $values := .root.Values -}}
{{- $sections := get (include "holdfast.configSections" . | fromYaml) .component -}}
{{- $config := pick $values "logging" -}}
{{- range $section := $sections -}}
{{- $_ := set $config $section (get $values $section) -}}
{{- end -}}
{{- range $part := list "registry" "webhook" "controller" "nodeAgent" -}}
{{- with get $config $part -}}
{{- $_ := set $config $part (omit . "replicas" "resources" "nodeSelector" "tolerations" "affinity" "podAnnotations" "podLabels" "priorityClassName" "extraEnv") -}}
{{- end -}}
{{- end -}}
{{- with $config.global -}}
{{- $_ := set $config "global" (pick . "networkfunctionextension") -}}
{{- end -}}
{{- if and $config.upstreams (ne .component "registry") -}}
{{- $hosts := list -}}
{{- range $config.upstreams -}}
{{- $hosts = append $hosts (pick . "host") -}}
{{- end -}}
{{- $_ := set $config "upstreams" $hosts -}}
{{- end -}}
{{- if $config.registry -}}
{{- $_ := set $config "registry" (include "holdfast.registryConfig" $config.registry | fromYaml) -}}
{{- end -}}
{{- if eq .component "registry" -}}
{{- $_ := set $config "registry" (omit $config.registry "service" "storage") -}}
{{- else if eq .component "node-agent" -}}
{{- $_ := set $config "nodeAgent" (omit $config.nodeAgent "startupTaint") -}}
{{- else if eq .component "controller" -}}
{{- $extension := $config.global.networkfunctionextension -}}
{{- $registry := pick $extension.clusterRegistry "clusterRegistryGCCadence" "clusterRegistryGCThreshold" -}}
{{- $webhook := pick $extension.webhook "pod" -}}
{{- $_ := set $config "global" (dict "networkfunctionextension" (dict "clusterRegistry" $registry "webhook" $webhook)) -}}
{{- $_ := set $config "nodeAgent" (pick $config.nodeAgent "startupTaint") -}}
{{- end -}}
release:
  name: {{ .root.Release.Name | quote }}
  namespace: {{ .root.Release.Namespace | quote }}
  fullname: {{ include "holdfast.fullname" .root | quote }}
  version: {{ .root.Chart.Version | quote }}
values:
  {{- $config | toYaml | nindent 2 }}
{{- end -}}

{{/* The values' section `registry` without what a ConfigMap must not hold: headers of notifications
     keep their names only. */}}
{{- define "holdfast.registryConfig" -}}
{{- $endpoints := list -}}
{{- range .notifications.endpoints -}}
{{- $headers := dict -}}
{{- range $name, $_ := get . "headers" | default dict -}}
{{- $_ := set $headers $name "" -}}
{{- end -}}
{{- $endpoints = append $endpoints (set (omit . "headers") "headers" $headers) -}}
{{- end -}}
{{- $notifications := set (omit .notifications "endpoints") "endpoints" $endpoints -}}
{{- set (omit . "notifications") "notifications" $notifications | toYaml -}}
{{- end -}}

{{/* Which sections of the values each document holds, beside `logging`. */}}
{{- define "holdfast.configSections" -}}
registry: [sources, onlyListedUpstreams, upstreams, proxy, uplink, registry]
webhook: [sources, onlyListedUpstreams, upstreams, access, webhook]
controller: [sources, onlyListedUpstreams, upstreams, access, global, webhook, controller, nodeAgent, preload]
node-agent: [nodeAgent]
config: [global, networkFunctionExtension, sources, onlyListedUpstreams, upstreams, access, registry, webhook, controller, nodeAgent, preload, uninstall]
{{- end -}}

{{/* The key of the ConfigMap that a pod mounts: its part's document; commands read `config`, which
     every version has. */}}
{{- define "holdfast.configKey" -}}
{{- $sections := include "holdfast.configSections" . | fromYaml -}}
{{ ternary .component "config" (hasKey $sections .component) }}.yaml
{{- end -}}
