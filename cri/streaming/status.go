package streaming

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

// status is the part of a Kubernetes Status that the error stream of a command
// carries from version 4 of the protocol on.
type status struct {
	Metadata struct{}       `json:"metadata"`
	Status   string         `json:"status"`
	Message  string         `json:"message,omitempty"`
	Reason   string         `json:"reason,omitempty"`
	Details  *statusDetails `json:"details,omitempty"`
	Code     int            `json:"code,omitempty"`
}

type statusDetails struct {
	Causes []statusCause `json:"causes"`
}

type statusCause struct {
	Type    string `json:"reason"`
	Message string `json:"message"`
}

// outcome is what the client is told of a command that has ended with exitCode, or by err.
func outcome(exitCode int, err error) status {
	switch {
	case err != nil:
		return status{Status: "Failure", Reason: "InternalError", Message: err.Error(), Code: http.StatusInternalServerError}
	case exitCode != 0:
		return status{
			Status: "Failure", Reason: "NonZeroExitCode", Message: fmt.Sprintf("command terminated with exit code %d", exitCode),
			Details: &statusDetails{Causes: []statusCause{{Type: "ExitCode", Message: strconv.Itoa(exitCode)}}},
		}
	default:
		return status{Status: "Success"}
	}
}

// encode is the status as the error stream has it: JSON from version 4 of the
// protocol on, before that the message of a failure.
func (s status) encode(asJSON bool) []byte {
	if !asJSON {
		return []byte(s.Message)
	}
	text, err := json.Marshal(s)
	if err != nil {
		panic(err) // no field can fail
	}
	return text
}
