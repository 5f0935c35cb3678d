package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"os"
	"slices"
)

// series is a line of the plot: what a request of a runtime takes, by the pods that are there.
type series struct {
	runtime, request string
	points           []point
}

type point struct{ x, y float64 } // pods, milliseconds

// The plot's measures in pixels. Labels of the lines are right of the axes.
const (
	plotWidth, plotHeight = 840, 420
	left, right           = 64, 560
	top, bottom           = 44, 366
	labelHeight           = 17
)

var (
	colours = []string{"#0b5fa5", "#c2410c", "#3f7d20", "#6b21a8"} // of runtimes
	dashes  = []string{"", "7 4", "2 3"}                           // of requests
)

// writePlot writes an SVG of the lines, with milliseconds on a logarithmic axis: runtimes lie more than ten times apart.
func writePlot(path string, pods int, lines []series) error {
	lowest, highest := math.Inf(1), 0.0
	for _, l := range lines {
		for _, p := range l.points {
			lowest, highest = min(lowest, p.y), max(highest, p.y)
		}
	}
	ticks := tickValues(lowest, highest)
	low, high := math.Log10(ticks[0]), math.Log10(ticks[len(ticks)-1])
	at := func(p point) (x, y float64) {
		return left + p.x/float64(pods)*(right-left), bottom - (math.Log10(p.y)-low)/(high-low)*(bottom-top)
	}
	var w bytes.Buffer
	fmt.Fprintf(&w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12" fill="#222">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&w, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&w, `<text x="%d" y="24" font-size="14" font-weight="bold">Median time of a request, ms (logarithmic)</text>`+"\n", left-40)
	for _, ms := range ticks {
		_, y := at(point{0, ms})
		fmt.Fprintf(&w, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n", left, y, right, left-8, y+4, ms)
	}
	for i := range 6 {
		n := pods * i / 5
		x, _ := at(point{float64(n), highest})
		fmt.Fprintf(&w, `<path d="M%.1f %dv5" stroke="#222"/><text x="%.1f" y="%d" text-anchor="middle">%d</text>`+"\n", x, bottom, x, bottom+20, n)
	}
	fmt.Fprintf(&w, `<path d="M%d %dV%dH%d" fill="none" stroke="#222"/>`+"\n", left, top, bottom, right)
	fmt.Fprintf(&w, `<text x="%d" y="%d" text-anchor="middle">pods on the node</text>`+"\n", (left+right)/2, bottom+40)

	type label struct {
		y     float64
		end   point // of the line, in pixels
		text  string
		style string
	}
	var labels []label
	var runtimes, requests []string
	for _, l := range lines {
		if !slices.Contains(runtimes, l.runtime) {
			runtimes = append(runtimes, l.runtime)
		}
		if !slices.Contains(requests, l.request) {
			requests = append(requests, l.request)
		}
		style := fmt.Sprintf(`fill="none" stroke-width="2" stroke=%q stroke-dasharray=%q`,
			colours[slices.Index(runtimes, l.runtime)%len(colours)], dashes[slices.Index(requests, l.request)%len(dashes)])
		fmt.Fprint(&w, `<polyline points="`)
		var x, y float64
		for _, p := range l.points {
			x, y = at(p)
			fmt.Fprintf(&w, "%.1f,%.1f ", x, y)
		}
		fmt.Fprintf(&w, `" %s/>`+"\n", style)
		labels = append(labels, label{y, point{x, y}, html.EscapeString(l.runtime + " " + l.request), style})
	}
	slices.SortFunc(labels, func(a, b label) int { return int(math.Copysign(1, b.y-a.y)) }) // lowest line first
	floor := float64(bottom)
	for i := range labels { // apart from each other
		labels[i].y = min(labels[i].y, floor)
		floor = labels[i].y - labelHeight
	}
	for _, l := range labels {
		fmt.Fprintf(&w, `<path d="M%.1f %.1fL%d %.1fh22" %s/><text x="%d" y="%.1f">%s</text>`+"\n", l.end.x, l.end.y, right+14, l.y, l.style, right+42, l.y+4, l.text)
	}
	w.WriteString("</svg>\n")
	return os.WriteFile(path, w.Bytes(), 0o644)
}

// tickValues are 1, 2 and 5 times powers of ten, from the greatest below the values to the smallest above them.
func tickValues(lowest, highest float64) []float64 {
	var ticks []float64
	for decade := math.Floor(math.Log10(lowest)); ; decade++ {
		for _, step := range []float64{1, 2, 5} {
			ms := step * math.Pow(10, decade)
			if ms <= lowest {
				ticks = nil
			}
			ticks = append(ticks, ms)
			if ms >= highest && len(ticks) > 1 {
				return ticks
			}
		}
	}
}
