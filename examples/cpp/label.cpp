// Labels a picture by an exported model, knowing nothing of it but its contract.
//
//   fada inspect model.onnx --json > model.json
//   label model.onnx model.json frame.ppm colors.ppm [labels.pgm]
//
// Both heads: `labels` comes out ready, `logits` is enlarged here, in the operations and their order that
// fada_deploy/runtime/kernels/upsample.py defines. Pictures are binary PPM (P6), so that no image library is needed.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

#include "json.hpp"

struct Picture {
    int height = 0, width = 0, channels = 3;
    std::vector<std::uint8_t> data;  // rows of pixels of channels, RGB
    const std::uint8_t* at(int y, int x) const { return &data[(std::size_t(y) * width + x) * channels]; }
};

static std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + ": cannot be read");
    return {std::istreambuf_iterator<char>(file), {}};
}

static Picture read_ppm(const std::string& path) {
    const std::string bytes = read_file(path);
    std::istringstream head(bytes);
    std::string magic;
    int width = 0, height = 0, largest = 0;
    head >> magic >> width >> height >> largest;
    const std::size_t start = std::size_t(std::max<std::streamoff>(head.tellg(), 0)) + 1;
    const std::size_t size = std::size_t(std::max(width, 0)) * std::max(height, 0) * 3;
    if (magic != "P6" || largest != 255 || size == 0 || bytes.size() < start + size)
        throw std::runtime_error(path + ": is no binary PPM of 8 bits; make one: ffmpeg -i frame.png frame.ppm");
    return {height, width, 3, {bytes.begin() + start, bytes.begin() + start + size}};
}

static void write_pnm(const std::string& path, const Picture& picture) {
    std::ofstream file(path, std::ios::binary);
    file << (picture.channels == 3 ? "P6\n" : "P5\n") << picture.width << ' ' << picture.height << "\n255\n";
    file.write(reinterpret_cast<const char*>(picture.data.data()), std::streamsize(picture.data.size()));
    if (!file.flush()) throw std::runtime_error(path + ": cannot be written");
}

// Two or more source pixels and their weights, for each pixel of one axis.
struct Taps {
    std::vector<int> first;
    std::vector<std::vector<float>> weights;
};

// Area averaging: what each output pixel covers, pixels at its border by the part it covers.
static Taps area_taps(int from, int to) {
    Taps taps;
    const double scale = double(from) / to;
    for (int i = 0; i < to; ++i) {
        const double begin = i * scale, end = std::min((i + 1) * scale, double(from));
        const int low = int(begin + 1e-9), high = std::max(int(std::ceil(end - 1e-9)), low + 1);
        std::vector<float> weights;
        for (int j = low; j < high; ++j)
            weights.push_back(float((std::min(end, j + 1.0) - std::max(begin, double(j))) / (end - begin)));
        taps.first.push_back(low);
        taps.weights.push_back(weights);
    }
    return taps;
}

// Bilinear between the centers of pixels, or between corners; positions in float, as the Python runtime has them.
static Taps linear_taps(int from, int to, bool align_corners) {
    Taps taps;
    const float scale = align_corners ? float(double(from - 1) / std::max(to - 1, 1)) : float(from) / float(to);
    for (int i = 0; i < to; ++i) {
        const float center = (float(i) + 0.5f) * scale - 0.5f;
        const float position = align_corners ? float(i) * scale : std::max(center, 0.0f);
        const int low = std::min(int(position), from - 1);
        const float high = std::min(position - float(low), 1.0f);
        taps.first.push_back(low);
        taps.weights.push_back({1.0f - high, high});
    }
    return taps;
}

// To within one gray level what common/images.py does: area averaging when shrinking, bilinear otherwise.
static Picture resize_frame(const Picture& from, int height, int width) {
    if (from.height == height && from.width == width) return from;
    const bool shrinks = height <= from.height && width <= from.width;
    const Taps ys = shrinks ? area_taps(from.height, height) : linear_taps(from.height, height, false);
    const Taps xs = shrinks ? area_taps(from.width, width) : linear_taps(from.width, width, false);
    // Of four pixels OpenCV rounds a half up, else to even.
    const bool halves = from.height == 2 * height && from.width == 2 * width;
    Picture to{height, width, 3, std::vector<std::uint8_t>(std::size_t(height) * width * 3)};
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x)
            for (int c = 0; c < 3; ++c) {
                float sum = 0;
                for (std::size_t v = 0; v < ys.weights[y].size(); ++v)
                    for (std::size_t u = 0; u < xs.weights[x].size(); ++u) {
                        const int row = std::min(ys.first[y] + int(v), from.height - 1);
                        const int column = std::min(xs.first[x] + int(u), from.width - 1);
                        sum += ys.weights[y][v] * xs.weights[x][u] * float(from.at(row, column)[c]);
                    }
                const float rounded = halves ? std::floor(sum + 0.5f) : std::nearbyint(sum);
                to.data[(std::size_t(y) * width + x) * 3 + c] = std::uint8_t(std::clamp(rounded, 0.f, 255.f));
            }
    return to;
}

// Logits (K, h, w) → the class of each pixel: interpolate every class, take the largest, the lower on a tie.
static Picture labels_of_logits(const float* logits, int classes, int h, int w, Picture like, bool align_corners) {
    Picture labels{like.height, like.width, 1, std::vector<std::uint8_t>(std::size_t(like.height) * like.width)};
    const Taps ys = linear_taps(h, like.height, align_corners), xs = linear_taps(w, like.width, align_corners);
    for (int y = 0; y < like.height; ++y)
        for (int x = 0; x < like.width; ++x) {
            const int top = ys.first[y] * w, bottom = std::min(ys.first[y] + 1, h - 1) * w;
            const int left = xs.first[x], right = std::min(left + 1, w - 1);
            float best = -INFINITY;
            for (int k = 0; k < classes; ++k) {
                const float* plane = logits + std::size_t(k) * h * w;
                const float upper = plane[top + left] * xs.weights[x][0] + plane[top + right] * xs.weights[x][1];
                const float lower = plane[bottom + left] * xs.weights[x][0] + plane[bottom + right] * xs.weights[x][1];
                const float z = upper * ys.weights[y][0] + lower * ys.weights[y][1];
                if (z > best) best = z, labels.data[std::size_t(y) * like.width + x] = std::uint8_t(k);
            }
        }
    return labels;
}

// Labels at the network's size → the frame's, each pixel taking the nearest.
static Picture labels_of_labels(const std::uint8_t* labels, int h, int w, const Picture& like) {
    Picture to{like.height, like.width, 1, std::vector<std::uint8_t>(std::size_t(like.height) * like.width)};
    for (int y = 0; y < to.height; ++y)
        for (int x = 0; x < to.width; ++x) {
            const std::size_t row = (2 * std::size_t(y) + 1) * h / (2 * to.height);
            const std::size_t column = (2 * std::size_t(x) + 1) * w / (2 * to.width);
            to.data[std::size_t(y) * to.width + x] = labels[row * w + column];
        }
    return to;
}

static ov::Tensor run(const std::string& model, const Picture& input, int batch, const std::string& head) {
    ov::Core core;
    // As the Python runtime asks for it: on CPUs that have it bf16 would be taken otherwise.
    auto compiled = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
    auto request = compiled.create_infer_request();
    ov::Tensor frames(ov::element::u8, {std::size_t(batch), std::size_t(input.height), std::size_t(input.width), 3});
    // A fixed batch is filled with the one frame again and again.
    for (int i = 0; i < batch; ++i)
        std::copy(input.data.begin(), input.data.end(), frames.data<std::uint8_t>() + i * input.data.size());
    request.set_tensor("frames", frames);
    request.infer();
    return request.get_tensor(head);
}

static void label(int count, char** words) {
    if (count < 5) throw std::runtime_error("usage: label MODEL.onnx CONTRACT.json FRAME.ppm COLORS.ppm [LABELS.pgm]");
    const Json document = Json::parse(read_file(words[2]));
    // What `fada inspect --json` writes has the contract within; an engine's sidecar has, too.
    const Json& contract = document.has("metadata") ? document["metadata"] : document;
    const Json& source = contract["input"];
    if (contract["schema"].number() != 1 || source["geometry"].text() != "stretch" || source["resize"].text() != "area"
        || source["layout"].text() != "NHWC" || source["color"].text() != "RGB" || source["dtype"].text() != "uint8")
        throw std::runtime_error(std::string(words[2]) + ": is a contract of another kind than this program knows");
    const Picture frame = read_ppm(words[3]);
    const Picture input = resize_frame(frame, source["height"].number(), source["width"].number());
    const std::string head = contract["head"].text();
    const ov::Tensor output = run(words[1], input, source.has("batch") ? source["batch"].number() : 1, head);
    const auto shape = output.get_shape();
    const auto& classes = contract["label_space"]["classes"].items();
    if (head == "logits" ? shape.size() != 4 || shape[1] != classes.size() : shape.size() != 3)
        throw std::runtime_error("the model's output is not the one that its contract tells of");
    const Picture labels = head == "logits"
        ? labels_of_logits(output.data<float>(), int(shape[1]), int(shape[2]), int(shape[3]), frame,
                           contract["align_corners"].is_true())
        : labels_of_labels(output.data<std::uint8_t>(), int(shape[1]), int(shape[2]), frame);
    Picture colors{frame.height, frame.width, 3, {}};
    std::vector<std::size_t> pixels(classes.size());
    for (const std::uint8_t index : labels.data) {
        for (const Json& part : classes.at(index)["color"].items()) colors.data.push_back(std::uint8_t(part.number()));
        ++pixels[index];
    }
    write_pnm(words[4], colors);
    if (count > 5) write_pnm(words[5], labels);
    for (std::size_t i = 0; i < classes.size(); ++i)
        if (pixels[i]) std::printf("%6.2f %%  %s\n", 100.0 * pixels[i] / labels.data.size(), classes[i]["name"].text().c_str());
}

int main(int count, char** words) {
    try {
        label(count, words);
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
