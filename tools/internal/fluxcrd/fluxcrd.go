// Package fluxcrd holds the CustomResourceDefinitions of the Flux release that the AKS extension microsoft.flux ships.
//
// The validator judges Flux objects by them, and the local platform installs them. The files are named as in Flux's own
// config/crd/bases, and are generated from its API modules, at the versions that gen/go.mod names. They have no
// descriptions, otherwise they are what Flux installs.
package fluxcrd

import "embed"

//go:generate go -C gen run . -o ..

// FS has one file for each definition, named GROUP_PLURAL.yaml.
//
//go:embed *.yaml
var FS embed.FS
