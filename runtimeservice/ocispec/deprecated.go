package ocispec

//lint:file-ignore SA1019 the deprecated fields are honoured, for older clients send nothing else

import runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

func oldSeccomp(sc interface{ GetSeccompProfilePath() string }) (*runtimeapi.SecurityProfile, error) {
	return profileOfString("seccomp_profile_path", sc.GetSeccompProfilePath())
}

func oldAppArmor(sc *runtimeapi.LinuxContainerSecurityContext) (*runtimeapi.SecurityProfile, error) {
	return profileOfString("apparmor_profile", sc.GetApparmorProfile())
}
