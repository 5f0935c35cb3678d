package transfer

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
)

func loadedMessage(id string, tags []string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		"id": text(id), "tags": structpb.NewListValue(texts(tags)),
	}}
}

func readLoaded(m *structpb.Struct) Loaded {
	l := Loaded{ID: m.GetFields()["id"].GetStringValue()}
	for _, v := range m.GetFields()["tags"].GetListValue().GetValues() {
		l.Tags = append(l.Tags, v.GetStringValue())
	}
	return l
}

func saveMessage(images []string, gzip bool) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		"images": structpb.NewListValue(texts(images)), "gzip": structpb.NewBoolValue(gzip),
	}}
}

func pullMessage(p Pull) *structpb.Struct {
	number := func(n int64) *structpb.Value { return structpb.NewNumberValue(float64(n)) }
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		"image": text(p.Image), "started": text(p.Started.UTC().Format(time.RFC3339Nano)),
		"layers": number(int64(p.Layers)), "layersDone": number(int64(p.LayersDone)),
		"bytes": number(p.Bytes), "bytesDone": number(p.BytesDone),
	}}
}

func readPull(m *structpb.Struct) Pull {
	f := m.GetFields()
	number := func(key string) int64 { return int64(f[key].GetNumberValue()) }
	p := Pull{
		Image: f["image"].GetStringValue(), Layers: int(number("layers")), LayersDone: int(number("layersDone")),
		Bytes: number("bytes"), BytesDone: number("bytesDone"),
	}
	p.Started, _ = time.Parse(time.RFC3339Nano, f["started"].GetStringValue())
	return p
}

// text is a string as protobuf takes one: UTF-8.
func text(s string) *structpb.Value { return structpb.NewStringValue(strings.ToValidUTF8(s, "\uFFFD")) }

func texts(list []string) *structpb.ListValue {
	l := &structpb.ListValue{}
	for _, s := range list {
		l.Values = append(l.Values, text(s))
	}
	return l
}
