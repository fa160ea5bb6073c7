{{/* metadata of a part's pods. Call with (dict "root" $ "component" NAME "part" PART). */}}
{{- define "holdfast.podMetadata" -}}
labels:
  {{- include "holdfast.labels" . | nindent 2 }}
  holdfast.dev/rewrite: disabled
  {{- with .part.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  checksum/config: {{ include "holdfast.config" . | sha256sum }}
  {{- if .root.Values.metrics.scrapeAnnotations }}
  prometheus.io/scrape: "true"
  prometheus.io/port: "9090"
  prometheus.io/path: /metrics
  {{- end }}
  {{- with .part.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* What every pod spec opens with. Call with (dict "root" $ "component" NAME "part" PART). */}}
{{- define "holdfast.podSpec" -}}
serviceAccountName: {{ include "holdfast.fullname" .root }}-{{ .component }}
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
nodeSelector:
  {{- toYaml (merge (dict) (.part.nodeSelector | default dict) (dict "kubernetes.io/os" "linux")) | nindent 2 }}
{{- end -}}

{{/* Restricted Pod Security of a pod. */}}
{{- define "holdfast.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{/* Restricted Pod Security of a container. */}}
{{- define "holdfast.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* Tolerations of Holdfast's own pods: leave a lost node after 30 s, run on system nodes, and on
     nodes that wait for them. */}}
{{- define "holdfast.tolerations" -}}
tolerations:
  - key: node.kubernetes.io/not-ready
    operator: Exists
    effect: NoExecute
    tolerationSeconds: 30
  - key: node.kubernetes.io/unreachable
    operator: Exists
    effect: NoExecute
    tolerationSeconds: 30
  - key: holdfast.dev/not-ready
    operator: Exists
  {{- with concat .root.Values.systemNodes.tolerations .part.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Affinity of Holdfast's own pods: system nodes, and each replica on a node of its own where
     there is one. */}}
{{- define "holdfast.affinity" -}}
affinity:
{{- if .part.affinity }}
  {{- toYaml .part.affinity | nindent 2 }}
{{- else }}
  {{- with .root.Values.systemNodes }}
  {{- if .selector }}
  nodeAffinity:
    {{- if .required }}
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            {{- range $label, $value := .selector }}
            - key: {{ $label }}
              operator: In
              values: [{{ $value | quote }}]
            {{- end }}
    {{- else }}
    preferredDuringSchedulingIgnoredDuringExecution:
      {{- range $label, $value := .selector }}
      - weight: 50
        preference:
          matchExpressions:
            - key: {{ $label }}
              operator: In
              values: [{{ $value | quote }}]
      {{- end }}
    {{- end }}
  {{- end }}
  {{- end }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "holdfast.selectorLabels" . | nindent 14 }}
{{- end }}
{{- end -}}

{{/* What every container has. Call with (dict "root" $ "component" NAME "part" PART). */}}
{{- define "holdfast.container" -}}
name: {{ .component }}
image: {{ include "holdfast.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args: [{{ .component }}, --config, /etc/holdfast/config.yaml{{ if eq .component "uninstall" }}, --hook{{ end }}]
env:
  {{- include "holdfast.downwardEnv" . | nindent 2 }}
  {{- with .part.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* The only environment that Holdfast reads. */}}
{{- define "holdfast.downwardEnv" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- end -}}

{{/* Probes on the admin port. */}}
{{- define "holdfast.probes" -}}
livenessProbe:
  httpGet:
    path: /livez
    port: admin
  initialDelaySeconds: 10
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /readyz
    port: admin
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end -}}

{{/* A pod that ends stays open until every node has stopped sending it connections. */}}
{{- define "holdfast.drain" -}}
lifecycle:
  preStop:
    sleep:
      seconds: 5
{{- end -}}

{{/* The mount and the volume of a part's configuration: its own document only. */}}
{{- define "holdfast.configMount" -}}
- name: config
  mountPath: /etc/holdfast/config.yaml
  subPath: config.yaml
  readOnly: true
{{- end -}}
{{- define "holdfast.configVolume" -}}
- name: config
  configMap:
    name: {{ include "holdfast.fullname" .root }}-config
    items:
      - key: {{ include "holdfast.configKey" . }}
        path: config.yaml
{{- end -}}

{{/* A HorizontalPodAutoscaler for a part. Call with (dict "root" $ "component" NAME). */}}
{{- define "holdfast.autoscaler" -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "holdfast.metadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "holdfast.fullname" .root }}-{{ .component }}
  minReplicas: 3
  maxReplicas: 5
  metrics:
    {{- range list "cpu" "memory" }}
    - type: Resource
      resource:
        name: {{ . }}
        target:
          type: Utilization
          averageUtilization: 80
    {{- end }}
{{- end -}}

{{/* A PodDisruptionBudget for a part. Call with
     (dict "root" $ "component" NAME "available" N). */}}
{{- define "holdfast.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "holdfast.metadata" . | nindent 2 }}
spec:
  minAvailable: {{ .available }}
  selector:
    matchLabels:
      {{- include "holdfast.selectorLabels" . | nindent 6 }}
{{- end -}}

{{/* The ServiceAccount of a part. Call with (dict "root" $ "component" NAME). */}}
{{- define "holdfast.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "holdfast.metadata" . | nindent 2 }}
automountServiceAccountToken: false
{{- end -}}

{{/* A binding of a part's (Cluster)Role. Call with
     (dict "root" $ "component" NAME "kind" "Role" or "ClusterRole"). */}}
{{- define "holdfast.binding" -}}
{{- $name := include "holdfast.fullname" .root -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}Binding
metadata:
  {{- if eq .kind "ClusterRole" }}
  {{- include "holdfast.clusterMetadata" . | nindent 2 }}
  {{- else }}
  {{- include "holdfast.metadata" . | nindent 2 }}
  {{- end }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .kind }}
  name: {{ $name }}-{{ .component }}{{ if eq .kind "ClusterRole" }}-{{ .root.Release.Namespace }}{{ end }}
subjects:
  - kind: ServiceAccount
    name: {{ $name }}-{{ .component }}
    namespace: {{ .root.Release.Namespace }}
{{- end -}}

{{/* Not empty when the controller has to change taints of nodes: the value asks for it, or it did
     and a node still carries one. */}}
{{- define "holdfast.taintsNodes" -}}
{{- $on := .Values.nodeAgent.startupTaint.enabled -}}
{{- if not $on -}}
{{- range (lookup "v1" "Node" "" "").items -}}
{{- range (.spec.taints | default list) -}}
{{- if eq .key "holdfast.dev/not-ready" -}}{{- $on = true -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $on }}true{{ end -}}
{{- end -}}
