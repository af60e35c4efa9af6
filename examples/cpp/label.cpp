// Segments an image with an exported model, using only the ONNX file and its metadata.
//
//   fada inspect model.onnx --json > model.json
//   label model.onnx model.json frame.ppm colors.ppm [labels.pgm]
//
// Supports both heads. `labels` is used directly. `logits` is upsampled here with the operations of
// fada_deploy/runtime/kernels/upsample.py in the same order. Images are binary PPM (P6), so that no
// image library is needed.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <openvino/openvino.hpp>

using nlohmann::json;

struct Image {
    int height = 0, width = 0, channels = 3;
    std::vector<std::uint8_t> data;  // (H, W, C); three channels are RGB
    const std::uint8_t* at(int y, int x) const { return &data[(std::size_t(y) * width + x) * channels]; }
};

static std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    return {std::istreambuf_iterator<char>(file), {}};
}

static Image read_ppm(const std::string& path) {
    const std::string bytes = read_file(path);
    std::istringstream head(bytes);
    std::string magic;
    int width = 0, height = 0, largest = 0;
    head >> magic >> width >> height >> largest;
    const std::size_t start = std::size_t(std::max<std::streamoff>(head.tellg(), 0)) + 1;
    const std::size_t size = std::size_t(std::max(width, 0)) * std::max(height, 0) * 3;
    if (magic != "P6" || largest != 255 || size == 0 || bytes.size() < start + size)
        throw std::runtime_error(path + " is not a complete 8-bit binary PPM; convert with: ffmpeg -i IMAGE " + path);
    return {height, width, 3, {bytes.begin() + start, bytes.begin() + start + size}};
}

static void write_pnm(const std::string& path, const Image& image) {
    std::ofstream file(path, std::ios::binary);
    file << (image.channels == 3 ? "P6\n" : "P5\n") << image.width << ' ' << image.height << "\n255\n";
    file.write(reinterpret_cast<const char*>(image.data.data()), std::streamsize(image.data.size()));
    if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

// Interpolation along one axis: for each output pixel, the first input pixel and the weights from there on.
struct Taps {
    std::vector<int> first;
    std::vector<std::vector<float>> weights;
};

// Area averaging: each output pixel is the mean of the input that it covers.
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

// Linear interpolation between pixel centers or, with align_corners, between the corner pixels.
// Positions are computed in float, like in the Python runtime.
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

// Same result as fada_deploy/common/images.py to within one gray level: area averaging if both sides shrink,
// bilinear interpolation otherwise.
static Image resize_frame(const Image& from, int height, int width) {
    if (from.height == height && from.width == width) return from;
    const bool shrinks = height <= from.height && width <= from.width;
    const Taps ys = shrinks ? area_taps(from.height, height) : linear_taps(from.height, height, false);
    const Taps xs = shrinks ? area_taps(from.width, width) : linear_taps(from.width, width, false);
    // At exactly half the size OpenCV rounds halves up, otherwise to even.
    const bool halves = from.height == 2 * height && from.width == 2 * width;
    Image to{height, width, 3, std::vector<std::uint8_t>(std::size_t(height) * width * 3)};
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

// Logits (K, h, w) to labels of the size of `like`: bilinear interpolation and argmax. The lower class wins a tie.
static Image labels_from_logits(const float* logits, int classes, int h, int w, Image like, bool align_corners) {
    Image labels{like.height, like.width, 1, std::vector<std::uint8_t>(std::size_t(like.height) * like.width)};
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

// Labels (h, w) to labels of the size of `like`, by the nearest pixel.
static Image resize_labels(const std::uint8_t* labels, int h, int w, const Image& like) {
    Image to{like.height, like.width, 1, std::vector<std::uint8_t>(std::size_t(like.height) * like.width)};
    for (int y = 0; y < to.height; ++y)
        for (int x = 0; x < to.width; ++x) {
            const std::size_t row = (2 * std::size_t(y) + 1) * h / (2 * to.height);
            const std::size_t column = (2 * std::size_t(x) + 1) * w / (2 * to.width);
            to.data[std::size_t(y) * to.width + x] = labels[row * w + column];
        }
    return to;
}

static ov::Tensor run(const std::string& model, const Image& input, int batch, const std::string& head) {
    ov::Core core;
    // Like the Python runtime; otherwise OpenVINO computes in bf16 on CPUs that support it.
    auto compiled = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
    auto request = compiled.create_infer_request();
    ov::Tensor frames(ov::element::u8, {std::size_t(batch), std::size_t(input.height), std::size_t(input.width), 3});
    // A fixed batch is filled with copies of the frame.
    for (int i = 0; i < batch; ++i)
        std::copy(input.data.begin(), input.data.end(), frames.data<std::uint8_t>() + i * input.data.size());
    request.set_tensor("frames", frames);
    request.infer();
    return request.get_tensor(head);
}

// Throws if the model needs preprocessing that this program does not implement.
static void check_input(const std::string& path, const json& metadata) {
    if (metadata.at("schema") != 1)
        throw std::runtime_error(path + ": unsupported schema " + metadata.at("schema").dump() + "; must be 1");
    const json& input = metadata.at("input");
    const json expected = {
        {"geometry", "stretch"}, {"resize", "area"}, {"layout", "NHWC"}, {"color", "RGB"}, {"dtype", "uint8"}};
    for (const auto& [key, value] : expected.items())
        if (input.at(key) != value)
            throw std::runtime_error(path + ": unsupported input." + key + " " + input.at(key).dump() + "; must be "
                                     + value.dump());
}

static Image predict(const std::string& model, const json& metadata, const Image& frame) {
    const json& input = metadata.at("input");
    const Image resized = resize_frame(frame, input.at("height"), input.at("width"));
    const std::string head = metadata.at("head");
    const json batch = input.value("batch", json());  // null: any
    const ov::Tensor output = run(model, resized, batch.is_null() ? 1 : batch.get<int>(), head);
    const auto shape = output.get_shape();
    const std::size_t num_classes = metadata.at("label_space").at("classes").size();
    if (head == "logits" ? shape.size() != 4 || shape[1] != num_classes : shape.size() != 3)
        throw std::runtime_error("the shape of the output `" + head + "` does not match the metadata");
    if (head == "labels") return resize_labels(output.data<std::uint8_t>(), int(shape[1]), int(shape[2]), frame);
    return labels_from_logits(output.data<float>(), int(shape[1]), int(shape[2]), int(shape[3]), frame,
                              metadata.at("align_corners"));
}

static void label(int count, char** arguments) {
    if (count < 5) throw std::runtime_error("usage: label MODEL.onnx METADATA.json FRAME.ppm COLORS.ppm [LABELS.pgm]");
    const std::string metadata_path = arguments[2];
    const json document = json::parse(read_file(metadata_path));
    // The metadata itself, or the output of `fada inspect --json`, which contains it.
    const json& metadata = document.contains("metadata") ? document.at("metadata") : document;
    check_input(metadata_path, metadata);
    const Image frame = read_ppm(arguments[3]);
    const Image labels = predict(arguments[1], metadata, frame);
    const json& classes = metadata.at("label_space").at("classes");
    std::vector<std::array<std::uint8_t, 3>> palette;
    for (const json& each : classes) palette.push_back(each.at("color"));
    Image colors{frame.height, frame.width, 3, {}};
    std::vector<std::size_t> pixels(classes.size());
    for (const std::uint8_t index : labels.data) {
        colors.data.insert(colors.data.end(), palette.at(index).begin(), palette.at(index).end());
        ++pixels[index];
    }
    write_pnm(arguments[4], colors);
    if (count > 5) write_pnm(arguments[5], labels);
    for (std::size_t i = 0; i < classes.size(); ++i)
        if (pixels[i])
            std::printf("%6.2f %%  %s\n", 100.0 * pixels[i] / labels.data.size(),
                        classes[i].at("name").get<std::string>().c_str());
}

int main(int count, char** arguments) {
    try {
        label(count, arguments);
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
