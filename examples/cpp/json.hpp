// Just enough JSON to read the contract of a model: values, arrays, objects. Throws std::runtime_error.
#pragma once

#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

class Json {
public:
    static Json parse(const std::string& text) {
        const char* at = text.c_str();
        Json value = read(at, at + text.size(), 0);
        skip(at);
        if (at != text.c_str() + text.size()) throw std::runtime_error("JSON: something follows the document");
        return value;
    }
    bool has(const std::string& key) const { return members_.count(key) != 0 && !members_.at(key).is_null(); }
    const Json& operator[](const std::string& key) const {
        const auto found = members_.find(key);
        if (found == members_.end()) throw std::runtime_error("the contract has no `" + key + "`");
        return found->second;
    }
    const std::vector<Json>& items() const { return items_; }
    const std::string& text() const { return text_; }
    int number() const { return std::atoi(text_.c_str()); }
    bool is_true() const { return text_ == "true"; }
    bool is_null() const { return kind_ == 'n'; }

private:
    static void skip(const char*& at) {
        while (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r') ++at;
    }
    static void expect(const char*& at, char wanted) {
        skip(at);
        if (*at != wanted) throw std::runtime_error(std::string("JSON: expected ") + wanted);
        ++at;
    }
    static Json read(const char*& at, const char* end, int depth) {
        skip(at);
        if (at >= end || depth > 64) throw std::runtime_error("JSON: ends too soon, or is nested too deeply");
        Json value;
        if (*at == '{' || *at == '[') {
            value.kind_ = *at++;
            const char close = value.kind_ == '{' ? '}' : ']';
            for (skip(at); *at != close; skip(at)) {
                if (value.kind_ == '{') {
                    skip(at);
                    const std::string key = string(at);
                    expect(at, ':');
                    value.members_[key] = read(at, end, depth + 1);
                } else {
                    value.items_.push_back(read(at, end, depth + 1));
                }
                skip(at);
                if (*at == ',') ++at;
                else if (*at != close) throw std::runtime_error("JSON: expected a comma");
            }
            ++at;
        } else if (*at == '"') {
            value.kind_ = 's';
            value.text_ = string(at);
        } else {
            value.kind_ = *at;  // t, f, n, a digit or a sign
            while (at < end && std::string(",]} \n\t\r").find(*at) == std::string::npos) value.text_ += *at++;
        }
        return value;
    }
    static std::string string(const char*& at) {
        expect(at, '"');
        std::string found;
        for (; *at != '"'; ++at) {
            if (*at == '\0') throw std::runtime_error("JSON: a string does not end");
            if (*at != '\\') found += *at;
            else if (*++at == '\0') throw std::runtime_error("JSON: a string does not end");
            else if (*at == 'u') {  // no name that matters here has one
                found += '?';
                for (int digit = 0; digit < 4 && at[1] != '\0'; ++digit) ++at;
            } else found += *at == 'n' ? '\n' : *at == 't' ? '\t' : *at;
        }
        ++at;
        return found;
    }

    char kind_ = 'n';
    std::string text_;
    std::vector<Json> items_;
    std::map<std::string, Json> members_;
};
